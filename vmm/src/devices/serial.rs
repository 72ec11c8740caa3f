//! The serial port (a 16550 at port 0x3f8), there only when the console is asked
//! for: each byte is a trap.

use std::io::{self, Write};

use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

/// Raises the port's interrupt line.
struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// How many bytes a guest may write in its life: the log is the host's disk.
const MAX_OUTPUT: u64 = 16 << 20;

/// Takes what there is room for and drops the rest.
struct Bounded<W> {
    output: W,
    left: u64,
}

impl<W: Write> Write for Bounded<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = bytes.len().min(self.left as usize);
        self.output.write_all(&bytes[..room])?;
        self.left -= room as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// A write-only serial port: input never comes.
pub struct SerialPort<W: Write> {
    port: Serial<Line, vm_superio::serial::NoEvents, Bounded<W>>,
}

impl<W: Write> SerialPort<W> {
    /// A port that writes to `output`, 16 MiB at most, and interrupts through `interrupt`.
    pub fn new(interrupt: EventFd, output: W) -> Self {
        let bounded = Bounded {
            output,
            left: MAX_OUTPUT,
        };
        Self {
            port: Serial::new(Line(interrupt), bounded),
        }
    }

    /// The guest reads a register.
    pub fn read(&mut self, offset: u8) -> u8 {
        self.port.read(offset)
    }

    /// The guest writes a register. Output that cannot be written is lost: the
    /// console must not be able to stop the guest.
    pub fn write(&mut self, offset: u8, value: u8) {
        let _ = self.port.write(offset, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out() {
        let mut port = SerialPort::new(EventFd::new(0).unwrap(), Vec::new());
        for byte in *b"hello" {
            port.write(0, byte);
        }
        assert_eq!(port.port.writer().output, b"hello");
        // Line status: transmitter empty.
        assert_eq!(port.read(5) & 0x60, 0x60);
    }

    #[test]
    fn there_is_an_end_to_what_a_guest_can_write() {
        let mut bounded = Bounded {
            output: Vec::new(),
            left: 3,
        };
        bounded.write_all(b"ab").unwrap();
        bounded.write_all(b"cdef").unwrap();
        assert_eq!(bounded.output, b"abc");
    }
}
