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

/// A write-only serial port: input never comes.
pub struct SerialPort<W: Write> {
    port: Serial<Line, vm_superio::serial::NoEvents, W>,
}

impl<W: Write> SerialPort<W> {
    /// A port that writes to `output` and interrupts through `interrupt`.
    pub fn new(interrupt: EventFd, output: W) -> Self {
        Self {
            port: Serial::new(Line(interrupt), output),
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
        assert_eq!(port.port.writer(), b"hello");
        // Line status: transmitter empty.
        assert_eq!(port.read(5) & 0x60, 0x60);
    }
}
