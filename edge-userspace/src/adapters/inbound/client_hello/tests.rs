//! On real sockets, where pieces come when they come.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::sleep;

use super::sample::{extension, hello, message, records, server_name};
use super::*;
use crate::domain::ServerName;

const HELLOS: ClientHellos = ClientHellos { limit: Duration::from_secs(20) };

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    client.set_nodelay(true).unwrap();
    (client, listener.accept().await.unwrap().0)
}

fn named(host: &str) -> Greeting {
    Greeting::Named(ServerName::parse(host).unwrap())
}

/// Sends in pieces while the other end looks; then every byte must still be there.
async fn greeted(bytes: &[u8], piece: usize) -> Greeting {
    let (mut client, mut server) = pair().await;
    let send = async {
        for piece in bytes.chunks(piece) {
            client.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    let (greeting, ()) = tokio::join!(HELLOS.greeting(&server), send);
    let mut back = vec![0; bytes.len()];
    server.read_exact(&mut back).await.unwrap();
    assert_eq!(back, bytes, "not a byte was taken");
    greeting
}

#[tokio::test]
async fn pieces_of_any_size_are_put_together_and_left_where_they_are() {
    for piece in [1, 2, 7, 1000, 10_000] {
        assert_eq!(greeted(&hello("www.example.com"), piece).await, named("www.example.com"), "pieces of {piece}");
        let message = message(&[extension(0xfe0d, &[1; 3000]), server_name(b"a.example")]);
        assert_eq!(greeted(&records(&message, 9), piece.max(50)).await, named("a.example"));
    }
    assert_eq!(greeted(b"GET / HTTP/1.0\r\n\r\n", 2).await, Greeting::NotTls);
}

#[tokio::test]
async fn an_end_before_the_name_is_noticed_at_once() {
    let (client, server) = pair().await;
    drop(client);
    assert_eq!(HELLOS.greeting(&server).await, Greeting::NotTls);
    for early in [true, false] {
        let (mut client, server) = pair().await;
        let end = async {
            client.write_all(&hello("a.example")[..40]).await.unwrap();
            if !early {
                sleep(Duration::from_millis(50)).await;
            }
            client.shutdown().await.unwrap();
        };
        let (greeting, ()) = match early {
            true => {
                end.await;
                (HELLOS.greeting(&server).await, ())
            }
            false => tokio::join!(HELLOS.greeting(&server), end),
        };
        assert_eq!(greeting, Greeting::Broken(HelloError::Ended));
    }
}

#[tokio::test]
async fn a_reset_is_noticed() {
    let (client, server) = pair().await;
    let reset = async {
        sleep(Duration::from_millis(50)).await;
        socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
    };
    let (greeting, ()) = tokio::join!(HELLOS.greeting(&server), reset);
    assert_eq!(greeting, Greeting::Gone);
}

#[tokio::test]
async fn silence_and_slowness_end_at_the_limit_without_spinning() {
    let hellos = ClientHellos { limit: Duration::from_millis(400) };
    let (mut client, mut server) = pair().await;
    assert_eq!(hellos.greeting(&server).await, Greeting::Silent);
    client.write_all(&hello("a.example")[..40]).await.unwrap();
    let before = busy();
    assert_eq!(hellos.greeting(&server).await, Greeting::Slow);
    assert!(busy() - before < Duration::from_millis(200), "it spins: {:?} in 400 ms", busy() - before);
    // The low-water mark is back: one byte is enough to wake a reader.
    server.read_exact(&mut [0; 40]).await.unwrap();
    client.write_all(b"x").await.unwrap();
    assert_eq!(tokio::time::timeout(HELLOS.limit, server.read_u8()).await.unwrap().unwrap(), b'x');
}

/// Processor time of this thread.
fn busy() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
}
