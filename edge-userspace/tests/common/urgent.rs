//! An urgent byte among others, to a backend that sends back what comes.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};

use socket2::SockRef;
use xtask::lab::Daemon;

use super::SOON;

pub fn send(client: &mut TcpStream) {
    client.write_all(b"before").unwrap();
    SockRef::from(&*client).send_out_of_band(b"!").unwrap();
    client.write_all(b"after").unwrap();
}

/// All of it comes back, behind the backend's name, and counts.
pub fn assert_came_back(mut client: TcpStream, daemon: &Daemon) {
    client.set_read_timeout(Some(SOON)).unwrap();
    let mut back = [0; "b1\nbefore!after".len()];
    client.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"b1\nbefore!after");
    client.shutdown(Shutdown::Write).unwrap();
    let record = daemon.record_of(client.local_addr().unwrap(), SOON).unwrap();
    assert_eq!((record.bytes_up, record.termination.as_str()), (12, "--"), "{record:?}");
}
