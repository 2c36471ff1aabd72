//! Whether what was given to a pair's sockets is still being taken.

use std::os::fd::AsFd;

use super::lane::{Both, Side};
use super::socket;

/// What was on its way at the last look. A connection on which nothing was read or written for the whole of its time
/// limit is idle, unless a slow reader is still taking what waits in a send buffer.
#[derive(Debug, Default)]
pub(super) struct Delivery(Both<u64>);

impl Delivery {
    /// To be asked when the limit has passed, which then begins anew if the answer is yes: of two looks that find the same
    /// bytes waiting the second says no.
    pub(super) fn goes_on(&mut self, sockets: &Both<impl AsFd>) -> bool {
        let waiting = Both::of(|side| socket::unacknowledged(sockets[side].as_fd()));
        let last = std::mem::replace(&mut self.0, waiting);
        Side::BOTH.into_iter().any(|side| waiting[side] > 0 && waiting[side] != last[side])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;
    use std::time::{Duration, Instant};

    use super::super::self_test::connected;
    use super::*;

    #[test]
    fn it_goes_on_while_a_reader_takes_and_not_where_nothing_waits_or_nobody_reads() {
        let ((mut near, mut far), (other, _other_far)) = (connected().unwrap(), connected().unwrap());
        near.set_nonblocking(true).unwrap();
        let mut delivery = Delivery::default();
        let goes_on = |delivery: &mut Delivery, near: &TcpStream| {
            let sockets = Both { client: near.try_clone().unwrap(), backend: other.try_clone().unwrap() };
            delivery.goes_on(&sockets)
        };
        assert!(!goes_on(&mut delivery, &near), "nothing waits");
        while near.write(&[7; 65536]).is_ok() {}
        // Until the reader's window is full, too.
        let settled = || socket::unacknowledged(near.as_fd());
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut waiting = settled();
        while Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(100));
            match std::mem::replace(&mut waiting, settled()) {
                last if last == waiting => break,
                _ => {}
            }
        }
        assert!(goes_on(&mut delivery, &near), "it was not known yet");
        assert!(!goes_on(&mut delivery, &near), "nobody reads");
        let mut buffer = vec![0; 1 << 20];
        while socket::unacknowledged(near.as_fd()) == waiting && Instant::now() < deadline {
            far.read_exact(&mut buffer).unwrap();
        }
        assert!(goes_on(&mut delivery, &near), "somebody reads");
    }
}
