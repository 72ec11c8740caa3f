//! The other end of a console socket: takes the terminal's master and reads it to its end.

use std::fs::File;
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread::JoinHandle;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// A listening socket to which a runtime connects.
#[derive(Debug)]
pub struct Console(UnixListener);

impl Console {
    /// Listens.
    ///
    /// # Errors
    /// When the path cannot be bound.
    pub fn listen(path: &Path) -> io::Result<Console> {
        let listener = UnixListener::bind(path)?;
        // A runtime that never comes is seen at once: it has connected when `create` ends.
        listener.set_nonblocking(true)?;
        Ok(Console(listener))
    }

    /// Takes the master and reads it in the background, until no process has the terminal.
    ///
    /// # Errors
    /// When the runtime did not connect or sent no descriptor.
    pub fn read(&self) -> io::Result<JoinHandle<Vec<u8>>> {
        let (stream, _) = self.0.accept()?;
        stream.set_nonblocking(false)?;
        let mut name = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        recvmsg(
            &stream,
            &mut [IoSliceMut::new(&mut name)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        let master: OwnedFd = control
            .drain()
            .find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
                _ => None,
            })
            .ok_or_else(|| io::Error::other("the console socket brought no descriptor"))?;
        Ok(std::thread::spawn(move || {
            let mut master = File::from(master);
            let mut output = Vec::new();
            let mut buffer = [0; 4096];
            // The kernel says EIO when the last process with the other side has gone.
            while let Ok(length @ 1..) = master.read(&mut buffer) {
                output.extend_from_slice(&buffer[..length]);
            }
            output
        }))
    }
}
