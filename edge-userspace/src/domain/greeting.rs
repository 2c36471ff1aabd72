//! What a client says first, as far as it decides where it is led.

use super::ServerName;

/// What was found where the server name decides between listeners.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Greeting {
    /// A TLS ClientHello with a server name.
    Named(ServerName),
    /// A TLS ClientHello without one.
    Nameless,
    /// Something else, or an end of the stream before anything.
    NotTls,
    /// It begins as TLS does, and no server name can be found in it.
    Broken(HelloError),
    /// Nothing within the time limit: perhaps the client waits for the server to speak.
    Silent,
    /// Something within the time limit, and not enough.
    Slow,
    /// The client has reset the connection.
    Gone,
}

/// Why no server name can be found in what begins as a TLS handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    #[error("a TLS record is empty or longer than TLS allows")]
    Record,
    #[error("a record that is not part of the handshake comes before the end of the ClientHello")]
    Interrupted,
    #[error("the first message of the handshake is not a ClientHello")]
    Message,
    #[error("a length in the ClientHello leads beyond what holds it")]
    Length,
    #[error("the server name in the ClientHello is not a host name")]
    Name,
    #[error("no server name in the first 16 KiB of the ClientHello")]
    TooLong,
    #[error("the stream ends within the ClientHello")]
    Ended,
}

impl Greeting {
    pub fn server_name(&self) -> Option<&ServerName> {
        match self {
            Self::Named(name) => Some(name),
            _ => None,
        }
    }
}
