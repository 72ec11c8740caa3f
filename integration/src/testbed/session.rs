//! The client side of one command's connection.

use std::io::{self, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::channel::{Frame, Request, Size};

/// Most connections that are tried for one command.
const MOST_TRIES: u32 = 20;
/// How long a test host under load may take to greet.
const WELCOME_TIME: Duration = Duration::from_secs(10);

/// A command that runs in the test host. Dropping it kills the command's process
/// group, unless the command has ended.
#[derive(Debug)]
pub struct Session {
    socket: TcpStream,
    input: Input,
}

/// What a command produced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Bytes of standard output.
    Stdout(Vec<u8>),
    /// Bytes of standard error.
    Stderr(Vec<u8>),
    /// The last event: the exit code, or 128 plus the signal.
    Exit(i32),
}

/// The way into a command; clones lead to the same one.
#[derive(Debug, Clone)]
pub struct Input {
    socket: Arc<Mutex<TcpStream>>,
}

impl Session {
    /// Connects and asks for the command.
    pub fn start(port: u16, request: Request) -> io::Result<Session> {
        let socket = reach(port)?;
        let mut writer = socket.try_clone()?;
        Frame::Request(request).write(&mut writer)?;
        Ok(Session {
            socket,
            input: Input {
                socket: Arc::new(Mutex::new(writer)),
            },
        })
    }

    /// A handle for input, to be used from another thread than [`Self::next`].
    pub fn input(&self) -> Input {
        self.input.clone()
    }

    /// The next event. After `deadline` the error is of kind `TimedOut`.
    pub fn next(&mut self, deadline: Option<Instant>) -> io::Result<Event> {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.socket.set_read_timeout(left)?;
        match Frame::read(&mut self.socket) {
            Ok(Frame::Stdout(bytes)) => Ok(Event::Stdout(bytes)),
            Ok(Frame::Stderr(bytes)) => Ok(Event::Stderr(bytes)),
            Ok(Frame::Exit(code)) => Ok(Event::Exit(code)),
            Ok(Frame::Refused(reason)) => Err(io::Error::other(reason)),
            Ok(_) => Err(io::Error::other(
                "the test host sent a frame of the client's",
            )),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(io::ErrorKind::TimedOut.into())
            }
            Err(error) => Err(error),
        }
    }
}

/// Connects, one at a time: QEMU takes every connection, but when many come together
/// it loses some on their way to the test host, which are never heard of or reset
/// much later. Nothing has run then, so that another one can be tried.
fn reach(port: u16) -> io::Result<TcpStream> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut tries = 1;
    loop {
        match greeted(port) {
            Err(error) if tries < MOST_TRIES && was_lost(&error) => tries += 1,
            result => return result,
        }
    }
}

fn was_lost(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionReset, TimedOut, UnexpectedEof, WouldBlock};
    matches!(
        error.kind(),
        ConnectionReset | TimedOut | UnexpectedEof | WouldBlock
    )
}

/// A connection that the test host itself has taken.
fn greeted(port: u16) -> io::Result<TcpStream> {
    let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(WELCOME_TIME))?;
    match Frame::read(&mut socket)? {
        Frame::Welcome => Ok(socket),
        _ => Err(io::Error::other("the test host did not greet")),
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Also ends a thread that is blocked in writing input.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

impl Input {
    const CHUNK: usize = 64 * 1024;

    fn send(&self, frame: &Frame) -> io::Result<()> {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        frame.write(&mut *socket)
    }

    /// Sends bytes to standard input; blocks while the command does not read.
    pub fn write(&self, bytes: &[u8]) -> io::Result<()> {
        bytes
            .chunks(Self::CHUNK)
            .try_for_each(|chunk| self.send(&Frame::Stdin(chunk.to_vec())))
    }

    /// Ends standard input.
    pub fn close(&self) -> io::Result<()> {
        self.send(&Frame::Stdin(Vec::new()))
    }

    /// Sends a signal to the command's process group.
    pub fn signal(&self, number: i32) -> io::Result<()> {
        self.send(&Frame::Signal(number))
    }

    /// Tells the command's terminal its new size.
    pub fn resize(&self, size: Size) -> io::Result<()> {
        self.send(&Frame::Resize(size))
    }
}

impl Write for Input {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Input::write(self, bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
