//! Bytes in against bytes out, for one direction of a pair.
//!
//! What the verdict hands over from application to application has one count only: the kernel tells the sender of what
//! it could not hand over. What goes through TCP and the daemon is counted four times on its way, and those counts are
//! compared. While bytes are on their way they may differ in one direction only; after a normal end they are equal.

use super::super::socket::TcpInfo;

/// One direction's bytes through TCP and the daemon, each count by somebody else.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counts {
    /// By the source's TCP: what was given to it, the lower 32 bits, the end of the stream as one; `None` if its socket
    /// is gone.
    pub(super) given: Option<u32>,
    /// By the TCP of the daemon's end of the source; `None` if it can't be told.
    pub(super) received: Option<TcpInfo>,
    /// By the daemon.
    pub(super) read: u64,
    pub(super) written: u64,
    /// By the verdict: what it put into the reader's queue for the daemon.
    pub(super) handed_over: u64,
    /// Likewise: what it left to the reader's TCP.
    pub(super) by_tcp: u64,
    /// By the TCP of the daemon's end of the reader: what the reader's TCP has acknowledged, an end of stream as one.
    pub(super) acknowledged: u64,
    /// By the reader's TCP: what its application took from there, likewise; `None` if its socket is gone.
    pub(super) taken: Option<u32>,
    /// The end of the stream was passed on.
    pub(super) shut: bool,
}

impl Counts {
    /// What is wrong. `over`: both streams have ended, and nothing is on its way any more.
    pub(super) fn disagreement(&self, over: bool) -> Option<String> {
        let &Self { read, written, handed_over, by_tcp, .. } = self;
        let end = u64::from(self.shut);
        let in_tcp = self.acknowledged.max(self.taken.unwrap_or(0).into());
        // Also what the reader has not taken from there: where it does not look it may never find it.
        if in_tcp > end + by_tcp {
            return Some("the reader was given bytes through TCP, where none may be".to_owned());
        }
        if self.given.is_some_and(|given| given.wrapping_sub(low(read)).cast_signed() < 0) {
            return Some("more was received than the sender gave to TCP".to_owned());
        }
        if let Some(TcpInfo { received, fin, .. }) = self.received
            && (received < read || over && received - read != u64::from(fin))
        {
            return Some(format!("{received} bytes were received, {read} were read"));
        }
        // A reader that closed before the end is given nothing: fewer handed over than written says nothing.
        (over && (written != read || handed_over + by_tcp > written))
            .then(|| format!("{read} bytes were read, {written} written, and {handed_over} handed over"))
    }
}

/// Sequence numbers have 32 bits.
fn low(count: u64) -> u32 {
    (count & u64::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// After an orderly end, with both sockets still there; ends of streams count as one.
    const SOUND: Counts = Counts {
        given: Some(1_001),
        received: Some(TcpInfo { closed: false, fin: true, received: 1_001, acked: 1, quiet: Duration::ZERO }),
        read: 1_000,
        written: 1_000,
        handed_over: 1_000,
        by_tcp: 0,
        acknowledged: 1,
        taken: Some(1),
        shut: true,
    };

    fn received(bytes: u64) -> Option<TcpInfo> {
        SOUND.received.map(|info| TcpInfo { received: bytes, ..info })
    }

    #[test]
    fn bytes_that_were_received_and_not_read_are_noticed_at_the_end_and_not_before() {
        let lost = Counts { received: received(1_007), given: Some(1_007), ..SOUND };
        assert_eq!(lost.disagreement(true).as_deref(), Some("1007 bytes were received, 1000 were read"));
        assert_eq!(lost.disagreement(false), None, "they may be on their way");
        assert_eq!(
            Counts { given: None, ..lost }.disagreement(true),
            lost.disagreement(true),
            "the sender may be gone"
        );
    }

    #[test]
    fn bytes_that_were_read_and_not_written_or_written_twice_are_noticed_at_the_end() {
        for broken in [
            Counts { written: 994, handed_over: 994, ..SOUND },
            Counts { written: 1_006, handed_over: 1_006, ..SOUND },
            Counts { handed_over: 1_006, ..SOUND },
        ] {
            assert!(broken.disagreement(true).is_some_and(|what| what.contains("handed over")), "{broken:?}");
            assert_eq!(broken.disagreement(false), None, "{broken:?}");
        }
    }

    #[test]
    fn bytes_too_many_are_noticed_at_once() {
        let read_twice = Counts { read: 1_001, written: 1_001, handed_over: 1_001, ..SOUND };
        assert!(read_twice.disagreement(true).is_some(), "the end is no byte");
        for broken in [
            Counts { given: Some(990), ..SOUND },
            Counts { received: received(990), ..SOUND },
            Counts { acknowledged: 7, ..SOUND },
            Counts { taken: Some(7), ..SOUND },
            Counts { acknowledged: 1, taken: None, shut: false, ..SOUND },
        ] {
            assert!(broken.disagreement(false).is_some() && broken.disagreement(true).is_some(), "{broken:?}");
        }
    }

    #[test]
    fn what_agrees_is_left_alone_also_beyond_32_bits_and_with_sockets_that_are_gone() {
        let many = (1 << 32) + 1_000;
        let large = Counts { received: received(many + 1), read: many, written: many, handed_over: many, ..SOUND };
        let gone = Counts { given: None, taken: None, received: None, ..SOUND };
        // The reader closed with bytes unread: what came after that it was not given.
        let unread = Counts { handed_over: 400, ..SOUND };
        for sound in [SOUND, large, gone, unread] {
            assert_eq!((sound.disagreement(false), sound.disagreement(true)), (None, None), "{sound:?}");
        }
    }
}
