//! What one checked connection does. The client sends it as a header, so one backend serves all behaviours.

use std::time::Duration;

use super::stream::{Dice, Stream};

/// Length of the header that starts every checked connection.
pub const HEADER: usize = 64;
const MAGIC: u64 = 0x6564_6765_7072_6f78;

/// How the two ends behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Behaviour {
    /// Both ends send at once and half-close when they are done.
    Duplex,
    /// The client half-closes; only then does the backend answer.
    ClientFirst,
    /// The backend half-closes; only then does the client send.
    BackendFirst,
    /// The backend sends and closes at once.
    BackendCloses,
    /// The client sends and closes at once.
    ClientCloses,
    /// The client resets when all it sent has arrived at the other end of its connection.
    ClientResets,
    /// The backend resets when all it sent has arrived at the other end of its connection.
    BackendResets,
    /// The client resets in the middle of a busy exchange.
    ClientAborts,
    /// The backend resets in the middle of a busy exchange.
    BackendAborts,
    /// The client reads slowly while the backend pushes.
    SlowClient,
    /// The backend reads slowly while the client pushes.
    SlowBackend,
    /// The client reads nothing for two seconds while the backend pushes.
    LateClient,
    /// The backend reads nothing for two seconds while the client pushes.
    LateBackend,
    /// Requests and responses of random sizes take turns.
    PingPong,
    /// The client sends everything before it reads the response, which the backend sends early.
    UnreadUpload,
    /// Many small requests and responses take turns, at a pace.
    Chat,
}

impl Behaviour {
    pub const ALL: [Self; 16] = [
        Self::Duplex,
        Self::ClientFirst,
        Self::BackendFirst,
        Self::BackendCloses,
        Self::ClientCloses,
        Self::ClientResets,
        Self::BackendResets,
        Self::ClientAborts,
        Self::BackendAborts,
        Self::SlowClient,
        Self::SlowBackend,
        Self::LateClient,
        Self::LateBackend,
        Self::PingPong,
        Self::UnreadUpload,
        Self::Chat,
    ];

    /// Whether a reset ends it. A reset is a single packet that nobody sends again when it is lost.
    pub fn ends_in_reset(self) -> bool {
        matches!(self, Self::ClientResets | Self::BackendResets | Self::ClientAborts | Self::BackendAborts)
    }

    /// Whether every byte sent must arrive; an abort may throw away what was under way.
    pub fn is_complete(self) -> bool {
        !matches!(self, Self::ClientAborts | Self::BackendAborts)
    }
}

/// One connection, fully determined: the rest (chunks, pauses, turns) follows from the seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scenario {
    /// Tells connections apart, also those of runs with different seeds.
    pub id: u64,
    pub behaviour: Behaviour,
    /// Bytes the client sends after the header.
    pub up: u64,
    pub down: u64,
    pub seed: u64,
}

impl Scenario {
    /// The `id`-th connection of a run: behaviours take turns, sizes are log-uniform up to `max` bytes.
    pub fn nth(seed: u64, id: u64, max: u64, behaviours: &[Behaviour]) -> Self {
        let mut dice = Dice::new(seed ^ id.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let turn = usize::try_from(id).unwrap_or(0) % behaviours.len().max(1);
        let behaviour = behaviours.get(turn).copied().unwrap_or(Behaviour::Duplex);
        let (up, down) = sizes(behaviour, max, &mut dice);
        Self { id: seed << 32 | id, behaviour, up, down, seed: dice.next() }
    }

    pub(super) fn header(&self) -> [u8; HEADER] {
        let code = Behaviour::ALL.iter().position(|b| *b == self.behaviour).unwrap_or(0) as u64;
        let mut header = [0; HEADER];
        let fields = [MAGIC, self.id, code, self.up, self.down, self.seed, 0];
        for (place, field) in header.chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        let sum = checksum(&header[..HEADER - 8]);
        header[HEADER - 8..].copy_from_slice(&sum.to_le_bytes());
        header
    }

    pub(super) fn parse(header: &[u8; HEADER]) -> Result<Self, String> {
        let mut fields = header.chunks_exact(8).map(|bytes| bytes.try_into().map_or(0, u64::from_le_bytes));
        let mut next = || fields.next().unwrap_or(0);
        let (magic, id, code, up, down, seed, _, sum) =
            (next(), next(), next(), next(), next(), next(), next(), next());
        if magic != MAGIC || sum != checksum(&header[..HEADER - 8]) {
            return Err("the header arrived damaged".to_owned());
        }
        let code = usize::try_from(code).unwrap_or(usize::MAX);
        let behaviour = *Behaviour::ALL.get(code).ok_or("the header names no behaviour")?;
        Ok(Self { id, behaviour, up, down, seed })
    }

    /// What the client does.
    pub(super) fn client(&self) -> Script {
        self.script(Side::Client)
    }

    /// What the backend does.
    pub(super) fn backend(&self) -> Script {
        self.script(Side::Backend)
    }

    fn script(&self, side: Side) -> Script {
        use Behaviour as B;
        let is_client = side == Side::Client;
        let (send, receive) = if is_client { (self.up, self.down) } else { (self.down, self.up) };
        let mut script = Script::new(self, side, send, receive);
        match (self.behaviour, side) {
            (B::ClientFirst, Side::Backend) | (B::BackendFirst, Side::Client) => script.send_after_end = true,
            (B::BackendCloses, Side::Backend) | (B::ClientCloses, Side::Client) => script.finish = Finish::Close,
            (B::BackendCloses, Side::Client) | (B::ClientCloses, Side::Backend) => script.send_after_end = true,
            (B::ClientResets, Side::Client) | (B::BackendResets, Side::Backend) => script.finish = Finish::Reset,
            (B::ClientResets, Side::Backend) | (B::BackendResets, Side::Client) => script.finish = Finish::AwaitReset,
            (B::ClientAborts, Side::Client) | (B::BackendAborts, Side::Backend) => {
                script.finish = Finish::Abort;
                script.send /= 2;
            }
            (B::ClientAborts, Side::Backend) | (B::BackendAborts, Side::Client) => script.finish = Finish::AwaitAbort,
            (B::SlowClient, Side::Client) | (B::SlowBackend, Side::Backend) => script.read_pause = Some(PAUSE),
            (B::LateClient, Side::Client) | (B::LateBackend, Side::Backend) => script.read_after = LATE,
            (B::PingPong, _) => script.turns = self.turns(side, 1 + Dice::new(self.seed ^ 0x7075).below(40)),
            (B::Chat, _) => {
                script.turns = self.turns(side, self.up.min(self.down).clamp(1, CHAT));
                script.read_pause = (side == Side::Client).then_some(THINKING);
            }
            (B::UnreadUpload, Side::Client) => script.read_after_sent = true,
            _ => {}
        }
        script
    }

    /// Requests and responses in turn: how much may be sent once how much was received.
    fn turns(&self, side: Side, rounds: u64) -> Vec<(u64, u64)> {
        let part = |total: u64, round: u64| total * round / rounds;
        match side {
            Side::Client => (1..=rounds).map(|r| (part(self.down, r - 1), part(self.up, r))).collect(),
            Side::Backend => (1..=rounds).map(|r| (part(self.up, r), part(self.down, r))).collect(),
        }
    }
}

/// Time a slow reader waits between two reads.
const PAUSE: Duration = Duration::from_millis(3);

/// Requests of a chat, at most, and the time its client takes before it reads a response. So a long one lasts a quarter of a
/// second on the fastest machine, with some thousand messages a second: lively, by the daemon's rules.
const CHAT: u64 = 500;
const THINKING: Duration = Duration::from_micros(200);

/// Time a late reader waits before its first read.
const LATE: Duration = Duration::from_secs(2);

fn sizes(behaviour: Behaviour, max: u64, dice: &mut Dice) -> (u64, u64) {
    use Behaviour as B;
    let mut size = |max: u64| dice.size(max);
    match behaviour {
        B::BackendCloses => (0, size(max)),
        B::ClientCloses => (size(max), 0),
        // The end that resets waits for a few bytes, so that the reset cannot overtake the connect to the backend.
        B::ClientResets => (size(max), 1 + size(512)),
        B::BackendResets => (1 + size(512), size(max)),
        // Enough that the abort falls into a transfer that is under way.
        B::ClientAborts | B::BackendAborts => (max / 8 + size(max / 8), max / 8 + size(max / 8)),
        B::SlowClient => (size(4096), max / 16 + size(max / 8)),
        B::SlowBackend => (max / 16 + size(max / 8), size(4096)),
        B::LateClient => (size(4096), max),
        B::LateBackend => (max, size(4096)),
        B::PingPong => (size(max / 8), size(max / 8)),
        B::Chat => (size(max / 64), size(max / 64)),
        B::Duplex | B::ClientFirst | B::BackendFirst | B::UnreadUpload => (size(max), size(max)),
    }
}

/// FNV-1a.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Backend,
}

/// How an end leaves, or expects the other to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finish {
    /// Half-close when all is sent; read to the end of the stream.
    HalfClose,
    /// Close when all is sent, without reading.
    Close,
    /// Reset when all that was sent is acknowledged and all that was expected is here.
    Reset,
    /// Reset when all is handed to the kernel and the first bytes are here.
    Abort,
    /// Read to a reset, after all the other end sent.
    AwaitReset,
    /// Read to a reset; the other end's last bytes may be missing.
    AwaitAbort,
}

/// What one end does.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) outgoing: Stream,
    pub(super) incoming: Stream,
    pub(super) send: u64,
    pub(super) receive: u64,
    pub(super) finish: Finish,
    /// Send only once the other end has half-closed.
    pub(super) send_after_end: bool,
    /// Read only once all is sent.
    pub(super) read_after_sent: bool,
    pub(super) read_pause: Option<Duration>,
    /// Read only so long after the start.
    pub(super) read_after: Duration,
    /// `(received, may_send)`: once `received` bytes are in, `may_send` bytes in all may go out. Empty: no waiting.
    pub(super) turns: Vec<(u64, u64)>,
    /// Largest number of bytes handed to the kernel at a time.
    pub(super) chunk: u64,
    pub(super) dice: Dice,
}

impl Script {
    fn new(scenario: &Scenario, side: Side, send: u64, receive: u64) -> Self {
        let (up, down) = (Stream::new(scenario.seed), Stream::new(!scenario.seed));
        let (outgoing, incoming) = if side == Side::Client { (up, down) } else { (down, up) };
        let mut dice = Dice::new(scenario.seed ^ send.rotate_left(32) ^ u64::from(side == Side::Client));
        let chunk = match dice.below(4) {
            0 if send < 16 << 10 => 1 + dice.below(64),
            0 | 1 => 1460 + dice.below(4096),
            _ => 16 << 10 << dice.below(4),
        };
        Self {
            outgoing,
            incoming,
            send,
            receive,
            finish: Finish::HalfClose,
            send_after_end: false,
            read_after_sent: false,
            read_pause: None,
            read_after: Duration::ZERO,
            turns: Vec::new(),
            chunk,
            dice,
        }
    }

    /// Bytes that may have been sent in all once `received` bytes are in.
    pub(super) fn allowed(&self, received: u64, ended: bool) -> u64 {
        if self.send_after_end && !ended {
            return 0;
        }
        if self.turns.is_empty() {
            return self.send;
        }
        self.turns.iter().take_while(|(needed, _)| received >= *needed).last().map_or(0, |(_, may)| *may)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_says_it_all() {
        for id in 0..100 {
            let scenario = Scenario::nth(9, id, 1 << 20, &Behaviour::ALL);
            assert_eq!(Scenario::parse(&scenario.header()), Ok(scenario));
        }
    }

    #[test]
    fn a_damaged_header_is_noticed() {
        let mut header = Scenario::nth(9, 1, 1 << 20, &Behaviour::ALL).header();
        header[17] ^= 1;
        assert!(Scenario::parse(&header).is_err());
    }
}
