//! Names an operator gives to things. Each role has its own type, so that an app can't be passed for a region.

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// Longest accepted name, in bytes. It bounds what a row can make logs and metrics carry.
const MAX_NAME_BYTES: usize = 255;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("{what} is empty: give it a name")]
    Empty { what: &'static str },
    #[error("{what} is {bytes} bytes long: use at most {MAX_NAME_BYTES}")]
    TooLong { what: &'static str, bytes: usize },
    #[error("{what} {name:?} holds white space or control characters: remove them")]
    Unprintable { what: &'static str, name: String },
}

fn checked(what: &'static str, name: &str) -> Result<Arc<str>, NameError> {
    if name.is_empty() {
        return Err(NameError::Empty { what });
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(NameError::TooLong { what, bytes: name.len() });
    }
    if name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(NameError::Unprintable { what, name: name.to_owned() });
    }
    Ok(Arc::from(name))
}

macro_rules! name_type {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(Arc<str>);

        impl $type {
            /// Accepts 1 to 255 bytes without white space or control characters; case is kept and counts.
            pub fn parse(name: &str) -> Result<Self, NameError> {
                checked($what, name).map(Self)
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        /// Equal names hash like their texts.
        impl std::borrow::Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($type), self.0)
            }
        }

        impl std::str::FromStr for $type {
            type Err = NameError;

            fn from_str(name: &str) -> Result<Self, NameError> {
                Self::parse(name)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
    };
}

name_type! {
    /// What a client asks for; it groups backends.
    AppName, "app"
}
name_type! {
    /// The key of a backend in the routing database.
    BackendId, "backend id"
}
name_type! {
    /// The key of a listener in the routing database, or its address in the settings.
    ListenerId, "listener id"
}
name_type! {
    /// What the service manager calls a listening socket that it hands over.
    SocketName, "socket name"
}
name_type! {
    /// The key of a rule about who may connect, in the routing database.
    RuleId, "rule id"
}
name_type! {
    /// A named part of the world.
    Region, "region"
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;

    #[test]
    fn accepts_ordinary_names_and_keeps_case() {
        assert_eq!(AppName::parse("myApp-1.v2").unwrap().as_str(), "myApp-1.v2");
        assert_eq!(format!("{:>5}|", Region::parse("sa").unwrap()), "   sa|");
        assert_eq!(serde_json::to_string(&BackendId::parse("b").unwrap()).unwrap(), "\"b\"");
    }

    #[test]
    fn refuses_empty_long_and_unprintable_names() {
        assert_eq!(AppName::parse(""), Err(NameError::Empty { what: "app" }));
        assert!(matches!(BackendId::parse(&"x".repeat(256)), Err(NameError::TooLong { bytes: 256, .. })));
        for name in ["a b", "a\n", "\u{7f}", "\u{a0}"] {
            assert!(matches!(Region::parse(name), Err(NameError::Unprintable { .. })), "{name:?}");
        }
    }
}
