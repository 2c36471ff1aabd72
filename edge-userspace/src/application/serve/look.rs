//! Looks at the first bytes of a connection and leaves them where they are.

use std::io;
use std::os::fd::AsFd as _;
use std::time::Instant;

use rustix::net::{RecvFlags, recv};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// How long to wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For the first byte.
    pub(super) first: Instant,
    /// For as many as are needed.
    pub(super) whole: Instant,
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Look<T> {
    Judged(T),
    /// The stream ended with bytes that do not suffice.
    Ended {
        bytes: usize,
    },
    TimedOut {
        bytes: usize,
    },
    /// The client reset the connection.
    Reset,
}

/// Lets `judge` look at what has come, up to `MOST` bytes, whenever there is more, until it has seen enough. It must not
/// ask for more than `MOST` bytes.
pub(super) async fn look<const MOST: usize, T>(
    client: &TcpStream,
    patience: Patience,
    mut judge: impl FnMut(&[u8]) -> Option<T>,
) -> Look<T> {
    let mut seen = 0;
    let first = tokio::time::timeout_at(patience.first.into(), first_look::<MOST, T>(client, &mut seen, &mut judge));
    match first.await {
        Err(_) => return Look::TimedOut { bytes: 0 },
        Ok(Err(_)) => return Look::Reset,
        Ok(Ok(Some(look))) => return look,
        Ok(Ok(None)) => {}
    }
    // Rare: a header in several packets.
    let rest = Box::pin(further_looks::<MOST, T>(client, &mut seen, judge));
    match tokio::time::timeout_at(patience.whole.into(), rest).await {
        Err(_) => Look::TimedOut { bytes: seen },
        Ok(Err(_)) => Look::Reset,
        Ok(Ok(look)) => look,
    }
}

/// At the first bytes, as soon as there are some. `None`: they do not suffice.
async fn first_look<const MOST: usize, T>(
    client: &TcpStream,
    seen: &mut usize,
    judge: &mut impl FnMut(&[u8]) -> Option<T>,
) -> io::Result<Option<Look<T>>> {
    loop {
        client.readable().await?;
        match client.try_io(Interest::READABLE, || peek::<MOST, T>(client, seen, judge)) {
            Err(why) if why.kind() == io::ErrorKind::WouldBlock => {}
            Err(why) => return Err(why),
            Ok(None) if *seen == 0 => return Ok(Some(Look::Ended { bytes: 0 })),
            Ok(judged) => return Ok(judged.map(Look::Judged)),
        }
    }
}

/// Waits for news on a second registration: that of the client must go on saying that there is something to read, or
/// nobody would read it later.
async fn further_looks<const MOST: usize, T>(
    client: &TcpStream,
    seen: &mut usize,
    mut judge: impl FnMut(&[u8]) -> Option<T>,
) -> io::Result<Look<T>> {
    let second = TcpStream::from_std(client.as_fd().try_clone_to_owned()?.into())?;
    loop {
        // Known before the look: then the look has seen everything.
        let ended = second.ready(Interest::READABLE).await?.is_read_closed();
        let looked = second.try_io(Interest::READABLE, || match peek::<MOST, T>(&second, seen, &mut judge)? {
            Some(judged) => Ok(Look::Judged(judged)),
            None if ended => Ok(Look::Ended { bytes: *seen }),
            // Nothing new: the next event is waited for.
            None => Err(io::ErrorKind::WouldBlock.into()),
        });
        match looked {
            Err(why) if why.kind() == io::ErrorKind::WouldBlock => {}
            looked => return looked,
        }
    }
}

fn peek<const MOST: usize, T>(
    client: &TcpStream,
    seen: &mut usize,
    judge: &mut impl FnMut(&[u8]) -> Option<T>,
) -> io::Result<Option<T>> {
    let mut buffer = [0; MOST];
    let (bytes, _) = recv(client, &mut buffer, RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
    let there = buffer.get(..bytes).unwrap_or_default();
    *seen = there.len();
    Ok(if there.is_empty() { None } else { judge(there) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    async fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        far.set_nodelay(true).unwrap();
        (far, listener.accept().await.unwrap().0)
    }

    fn within(first: u64, whole: u64) -> Patience {
        let now = Instant::now();
        Patience { first: now + Duration::from_millis(first), whole: now + Duration::from_millis(whole) }
    }

    /// Enough are five bytes.
    fn five(bytes: &[u8]) -> Option<Vec<u8>> {
        bytes.get(..5).map(<[u8]>::to_vec)
    }

    #[tokio::test]
    async fn bytes_that_come_one_by_one_are_waited_for_and_stay() {
        let (mut far, mut near) = connected().await;
        let sender = tokio::spawn(async move {
            for byte in b"hello world" {
                far.write_all(&[*byte]).await.unwrap();
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            far
        });
        let Look::Judged(seen) = look::<64, _>(&near, within(20_000, 20_000), five).await else { panic!() };
        assert_eq!(seen, b"hello");
        let mut all = [0; 11];
        near.read_exact(&mut all).await.unwrap();
        assert_eq!(&all, b"hello world");
        drop(sender.await.unwrap());
    }

    #[tokio::test]
    async fn what_was_waited_for_in_vain_can_still_be_read() {
        let (mut far, mut near) = connected().await;
        far.write_all(b"hel").await.unwrap();
        assert!(matches!(look::<64, _>(&near, within(20_000, 50), five).await, Look::TimedOut { bytes: 3 }));
        let mut all = [0; 3];
        tokio::time::timeout(Duration::from_secs(20), near.read_exact(&mut all)).await.unwrap().unwrap();
        assert_eq!(&all, b"hel");
    }

    #[tokio::test]
    async fn silence_an_end_and_a_reset_are_told_apart() {
        let (mut far, near) = connected().await;
        assert!(matches!(look::<64, _>(&near, within(20, 20_000), five).await, Look::TimedOut { bytes: 0 }));
        far.write_all(b"hel").await.unwrap();
        far.shutdown().await.unwrap();
        assert!(matches!(look::<64, _>(&near, within(20_000, 20_000), five).await, Look::Ended { bytes: 3 }));
        let (far, near) = connected().await;
        drop(far);
        assert!(matches!(look::<64, _>(&near, within(20_000, 20_000), five).await, Look::Ended { bytes: 0 }));
        let (far, near) = connected().await;
        socket2::SockRef::from(&far).set_linger(Some(Duration::ZERO)).unwrap();
        drop(far);
        assert!(matches!(look::<64, _>(&near, within(20_000, 20_000), five).await, Look::Reset));
    }
}
