//! How a connection to [`crate::ports::FORWARD`] begins: the shim says where it leads
//! ([`Target`]), the agent answers with one byte, [`CONNECTED`] or [`REFUSED`], and
//! after [`CONNECTED`] it carries the forwarded connection's bytes.

use std::time::Duration;

/// How long a process of the pod may take to accept, for each family: about as long as the
/// kernel goes on asking, which is how long one is waited for that is dialled without a VM. A
/// busy server whose queue is full lets in a few with each question.
pub const DIAL_TIME: Duration = Duration::from_secs(120);

/// The pod's process has the connection.
pub const CONNECTED: u8 = 0;
/// Nobody in the pod takes it; the agent closes it.
pub const REFUSED: u8 = 1;

/// An address family of the pod's loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// 127.0.0.1.
    V4,
    /// ::1.
    V6,
}

/// A TCP port of the pod's loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The family that is tried first.
    pub family: Family,
    /// The port.
    pub port: u16,
}

impl Target {
    /// Length of the header in bytes.
    pub const SIZE: usize = 3;

    /// The header: 4 or 6, then the port in network byte order.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let family = match self.family {
            Family::V4 => 4,
            Family::V6 => 6,
        };
        let [high, low] = self.port.to_be_bytes();
        [family, high, low]
    }

    /// Reads a header; `None` when it names no family.
    pub fn from_bytes([family, high, low]: [u8; Self::SIZE]) -> Option<Self> {
        let family = match family {
            4 => Family::V4,
            6 => Family::V6,
            _ => return None,
        };
        Some(Self {
            family,
            port: u16::from_be_bytes([high, low]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Family, Target};

    #[test]
    fn bytes_and_back() {
        let target = Target {
            family: Family::V6,
            port: 8080,
        };
        assert_eq!(target.to_bytes(), [6, 0x1f, 0x90]);
        assert_eq!(Target::from_bytes(target.to_bytes()), Some(target));
        assert_eq!(Target::from_bytes([5, 0, 80]), None);
    }
}
