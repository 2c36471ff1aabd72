//! The TCP options of both sides of a connection.

use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

use super::forward::{count_what_is_left, queue_len};

/// Probes after which a silent peer counts as gone, where no `user_timeout` says when (then the kernel looks at that
/// alone).
const KEEPALIVE_PROBES: u32 = 3;

/// What is set on every client and backend socket, besides TCP_NODELAY.
#[derive(Debug, Clone, Copy)]
pub struct TcpOptions {
    /// Quiet time before the first keepalive probe, and between probes a third of it. Zero: no keepalive.
    pub keepalive: Duration,
    /// How long sent bytes may stay unacknowledged (TCP_USER_TIMEOUT, RFC 5482). Zero: the system's limit.
    pub user_timeout: Duration,
}

impl TcpOptions {
    /// Sets the options of a listening socket, which what comes from now on has, too: that spares eight system calls for
    /// each client. Who is in its queue already has them not; says how many these are.
    pub fn apply_to_listener(&self, listener: &impl AsFd) -> u32 {
        // A socket that is handed over has what the daemon before set.
        let socket = SockRef::from(listener);
        let _ = socket.set_keepalive(false);
        let _ = socket.set_tcp_user_timeout(None);
        self.apply(listener);
        queue_len(listener.as_fd())
    }

    /// Sets the options. A socket that refuses one works without it.
    pub fn apply(&self, socket: &impl AsFd) {
        count_what_is_left(socket.as_fd());
        let socket = SockRef::from(socket);
        // A proxy that waits for more to send turns a write-write-read conversation from 0.6 into 44 ms.
        let _ = socket.set_tcp_nodelay(true);
        // Otherwise an urgent byte is cut out of what is read, but not out of what TCP counts as received.
        let _ = socket.set_out_of_band_inline(true);
        if !self.keepalive.is_zero() {
            let keepalive = TcpKeepalive::new()
                .with_time(self.keepalive)
                .with_interval((self.keepalive / 3).max(Duration::from_secs(1)));
            let limited = self.user_timeout.is_zero();
            let keepalive = if limited { keepalive.with_retries(KEEPALIVE_PROBES) } else { keepalive };
            let _ = socket.set_tcp_keepalive(&keepalive);
        }
        if !self.user_timeout.is_zero() {
            let _ = socket.set_tcp_user_timeout(Some(self.user_timeout));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::forward::counts_what_is_left;
    use super::*;

    const KEEPALIVE: Duration = Duration::from_secs(60);
    const USER_TIMEOUT: Duration = Duration::from_secs(300);
    const OPTIONS: TcpOptions = TcpOptions { keepalive: KEEPALIVE, user_timeout: USER_TIMEOUT };

    #[test]
    fn the_kernel_has_every_option_that_was_set() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        OPTIONS.apply(&stream);
        assert_set(&stream);
    }

    #[test]
    fn accepted_sockets_have_the_options_of_their_listener_unless_they_were_early() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = || std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _early = [connect(), connect()];
        assert_eq!(OPTIONS.apply_to_listener(&listener), 2);
        let _later = connect();
        let [first, second, third] = std::array::from_fn(|_| listener.accept().unwrap().0);
        assert!([first, second].iter().all(|early| !SockRef::from(early).out_of_band_inline().unwrap()));
        assert_set(&third);
    }

    #[test]
    fn a_listener_loses_the_options_of_the_daemon_before() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        OPTIONS.apply_to_listener(&listener);
        let none = TcpOptions { keepalive: Duration::ZERO, user_timeout: Duration::ZERO };
        assert_eq!(none.apply_to_listener(&listener), 0);
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let accepted = listener.accept().unwrap().0;
        let socket = SockRef::from(&accepted);
        assert!(!socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
        assert_eq!(socket.tcp_user_timeout().unwrap(), None);
    }

    fn assert_set(stream: &std::net::TcpStream) {
        let socket = SockRef::from(stream);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap() && socket.out_of_band_inline().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE / 3);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(USER_TIMEOUT));
        assert!(counts_what_is_left(stream.as_fd()));
    }
}
