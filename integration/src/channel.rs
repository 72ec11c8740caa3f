//! The frames that the test bed and the test host exchange.
//!
//! One connection runs one command. The server sends [`Frame::Welcome`]: until then
//! only QEMU has taken the connection. The client sends [`Frame::Request`], then any
//! of [`Frame::Stdin`], [`Frame::Resize`] and [`Frame::Signal`]; the server sends
//! output as it comes and one [`Frame::Exit`] or [`Frame::Refused`] at the end.
//! A client that goes away takes its command's process group with it.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// The TCP port on which `testhost-init` listens.
pub const PORT: u16 = 7;

/// The longest payload that either side sends; a longer one is refused.
pub const MAX_PAYLOAD: usize = 256 * 1024;

/// What the test host prints on its console when it takes commands.
pub const READY: &str = "testhost: ready";

/// The command that a connection runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Proves that the client is the process that booted the host.
    pub token: String,
    /// Program and arguments; the program is looked up in `PATH`.
    pub argv: Vec<String>,
    /// Added to the environment of `testhost-init`.
    pub env: Vec<(String, String)>,
    /// Working directory.
    pub cwd: String,
    /// Runs the command on a terminal of this size; then stderr comes as stdout.
    pub terminal: Option<Size>,
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Server: the first frame.
    Welcome,
    /// Client: the first frame.
    Request(Request),
    /// Client: bytes for standard input; none means end of file.
    Stdin(Vec<u8>),
    /// Client: the terminal's new size.
    Resize(Size),
    /// Client: a signal for the command's process group.
    Signal(i32),
    /// Server: bytes from standard output.
    Stdout(Vec<u8>),
    /// Server: bytes from standard error.
    Stderr(Vec<u8>),
    /// Server, last: the exit code, or 128 plus the signal.
    Exit(i32),
    /// Server, last: why the command was not started.
    Refused(String),
}

mod kind {
    pub(super) const REQUEST: u8 = 1;
    pub(super) const STDIN: u8 = 2;
    pub(super) const RESIZE: u8 = 3;
    pub(super) const SIGNAL: u8 = 4;
    pub(super) const STDOUT: u8 = 5;
    pub(super) const STDERR: u8 = 6;
    pub(super) const EXIT: u8 = 7;
    pub(super) const REFUSED: u8 = 8;
    pub(super) const WELCOME: u8 = 9;
}

impl Frame {
    /// Writes the frame with a single `write_all`.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        match self {
            Frame::Welcome => put(to, kind::WELCOME, &[]),
            Frame::Request(request) => put(to, kind::REQUEST, &serde_json::to_vec(request)?),
            Frame::Stdin(bytes) => put(to, kind::STDIN, bytes),
            Frame::Resize(size) => put(to, kind::RESIZE, &serde_json::to_vec(size)?),
            Frame::Signal(number) => put(to, kind::SIGNAL, &number.to_le_bytes()),
            Frame::Stdout(bytes) => put(to, kind::STDOUT, bytes),
            Frame::Stderr(bytes) => put(to, kind::STDERR, bytes),
            Frame::Exit(code) => put(to, kind::EXIT, &code.to_le_bytes()),
            Frame::Refused(reason) => put(to, kind::REFUSED, reason.as_bytes()),
        }
    }

    /// Reads one frame. A connection that ends between frames is `UnexpectedEof`
    /// like one that ends within: both sides know which frame is the last.
    pub fn read(from: &mut impl Read) -> io::Result<Frame> {
        let mut header = [0; 5];
        from.read_exact(&mut header)?;
        let [kind, length @ ..] = header;
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_PAYLOAD {
            return Err(invalid(format!("a frame of {length} bytes")));
        }
        let mut payload = vec![0; length];
        from.read_exact(&mut payload)?;
        Ok(match kind {
            kind::WELCOME => Frame::Welcome,
            kind::REQUEST => Frame::Request(serde_json::from_slice(&payload)?),
            kind::STDIN => Frame::Stdin(payload),
            kind::RESIZE => Frame::Resize(serde_json::from_slice(&payload)?),
            kind::SIGNAL => Frame::Signal(number(&payload)?),
            kind::STDOUT => Frame::Stdout(payload),
            kind::STDERR => Frame::Stderr(payload),
            kind::EXIT => Frame::Exit(number(&payload)?),
            kind::REFUSED => Frame::Refused(String::from_utf8_lossy(&payload).into_owned()),
            other => return Err(invalid(format!("a frame of kind {other}"))),
        })
    }
}

fn put(to: &mut impl Write, kind: u8, payload: &[u8]) -> io::Result<()> {
    if payload.len() > MAX_PAYLOAD {
        return Err(invalid(format!("a frame of {} bytes", payload.len())));
    }
    let mut frame = Vec::with_capacity(5 + payload.len());
    frame.push(kind);
    frame.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    frame.extend_from_slice(payload);
    to.write_all(&frame)
}

fn number(payload: &[u8]) -> io::Result<i32> {
    let bytes = payload
        .try_into()
        .map_err(|_| invalid(format!("a number of {} bytes", payload.len())))?;
    Ok(i32::from_le_bytes(bytes))
}

fn invalid(what: String) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{what} on the test host's channel"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_wire() {
        let frames = [
            Frame::Welcome,
            Frame::Request(Request {
                token: "t".into(),
                argv: vec!["sh".into(), "-c".into(), "echo \"ü\"".into()],
                env: vec![("A".into(), "b".into())],
                cwd: "/".into(),
                terminal: Some(Size {
                    rows: 24,
                    columns: 80,
                }),
            }),
            Frame::Stdin(vec![]),
            Frame::Stdin(vec![0, 255, 10]),
            Frame::Resize(Size {
                rows: 1,
                columns: 2,
            }),
            Frame::Signal(15),
            Frame::Stdout(vec![7; MAX_PAYLOAD]),
            Frame::Stderr(b"no".to_vec()),
            Frame::Exit(-1),
            Frame::Refused("why".into()),
        ];
        let mut wire = Vec::new();
        for frame in &frames {
            frame.write(&mut wire).unwrap();
        }
        let mut wire = wire.as_slice();
        for frame in &frames {
            assert_eq!(&Frame::read(&mut wire).unwrap(), frame);
        }
        assert_eq!(
            Frame::read(&mut wire).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }

    #[test]
    fn bad_frames_are_refused() {
        let too_long = Frame::Stdout(vec![0; MAX_PAYLOAD + 1]);
        assert!(too_long.write(&mut Vec::new()).is_err());
        for bytes in [
            &[kind::STDIN, 255, 255, 255, 255][..],
            &[99, 0, 0, 0, 0],
            &[kind::EXIT, 1, 0, 0, 0, 0],
            &[kind::REQUEST, 2, 0, 0, 0, b'{', b'}'],
        ] {
            let error = Frame::read(&mut &bytes[..]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{bytes:?}");
        }
    }
}
