//! Reads the TLS server name that a client asks for, and leaves every byte where it is: the handshake is the backend's.

mod parse;
#[cfg(test)]
pub(crate) mod sample;

use std::cell::RefCell;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::time::Duration;

use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::timeout;

use self::parse::{LONGEST, Look, look};
use crate::adapters::outbound::forward::set_low_water;
use crate::application::ports::Greeter;
use crate::domain::{Greeting, HelloError};

/// Looks at the first bytes of connections.
#[derive(Debug, Clone, Copy)]
pub struct ClientHellos {
    /// How long a client may take to say which server it wants.
    pub limit: Duration,
}

impl Greeter for ClientHellos {
    fn greeting<'a>(&'a self, client: &'a TcpStream) -> Pin<Box<dyn Future<Output = Greeting> + Send + 'a>> {
        Box::pin(async move {
            let mut watch = Watch { client, seen: 0, raised: false };
            match timeout(self.limit, watch.greeting()).await {
                Ok(greeting) => greeting,
                Err(_) if watch.seen == 0 => Greeting::Silent,
                Err(_) => Greeting::Slow,
            }
        })
    }
}

thread_local! {
    /// What is seen stays in the socket, so that one buffer serves all connections of a worker.
    static SEEN: RefCell<Vec<u8>> = RefCell::new(vec![0; LONGEST]);
}

struct Watch<'a> {
    client: &'a TcpStream,
    /// Bytes that the last look saw.
    seen: usize,
    /// The socket's low-water mark is not what it was.
    raised: bool,
}

impl Watch<'_> {
    async fn greeting(&mut self) -> Greeting {
        loop {
            let Ok(ready) = self.client.ready(Interest::READABLE).await else { return Greeting::Gone };
            // A look takes nothing, so the socket would stay ready and this loop would spin. Inside `try_io` "would
            // block" takes the readiness away, except for what came in after the look, and the next byte gives it back.
            let client = self.client;
            match client.try_io(Interest::READABLE, || self.look_again()) {
                Ok(Look::Found(greeting)) => return greeting,
                Ok(Look::Wants(bytes)) => self.wait_for(bytes),
                // The end was known before the look: nothing can have come after it.
                Err(error) if error.kind() == ErrorKind::WouldBlock && ready.is_read_closed() => {
                    return Greeting::Broken(HelloError::Ended);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return Greeting::Gone,
            }
        }
    }

    /// "Would block" if nothing is new.
    fn look_again(&mut self) -> io::Result<Look> {
        SEEN.with_borrow_mut(|buffer| {
            let there = rustix::net::recv(self.client, buffer.as_mut_slice(), RecvFlags::PEEK)?.0;
            match there {
                0 => Ok(Look::Found(Greeting::NotTls)),
                _ if there <= self.seen => Err(ErrorKind::WouldBlock.into()),
                _ => {
                    self.seen = there;
                    Ok(look(buffer.get(..there).unwrap_or_default()))
                }
            }
        })
    }

    /// So that not each of many small pieces wakes this up.
    fn wait_for(&mut self, bytes: usize) {
        self.raised = true;
        set_low_water(self.client.as_fd(), bytes);
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if self.raised {
            // Also where the time was over. Whoever reads next is woken up by every byte again.
            set_low_water(self.client.as_fd(), 1);
        }
    }
}

#[cfg(test)]
mod tests;
