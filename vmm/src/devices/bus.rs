//! Finds the device behind an address that a vCPU touched.

use std::io::Write;
use std::sync::Mutex;

use super::serial::SerialPort;
use super::virtio::mmio::Transport;
use super::virtio::persist::{RestoreError, SavedTransport};
use crate::arch::x86_64::layout::{DEVICE_SIZE, DEVICES};

/// First I/O port of the serial port, and their number.
const SERIAL_PORT: u16 = 0x3f8;
const SERIAL_PORTS: u16 = 8;
/// The keyboard controller's command port; 0xfe pulses the CPU's reset line.
const KEYBOARD_CONTROLLER: u16 = 0x64;
const PULSE_RESET: u8 = 0xfe;

/// What a vCPU does after an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// Go on.
    Continue,
    /// The guest reset the machine.
    Reset,
}

/// All devices of the VM, in address order.
pub struct Bus {
    transports: Vec<Transport>,
    serial: Option<Mutex<SerialPort<Box<dyn Write + Send>>>>,
}

impl Bus {
    /// A bus with these devices from [`DEVICES`] on, and perhaps a serial port.
    pub fn new(
        transports: Vec<Transport>,
        serial: Option<SerialPort<Box<dyn Write + Send>>>,
    ) -> Self {
        Self {
            transports,
            serial: serial.map(Mutex::new),
        }
    }

    /// How many there are.
    pub fn devices(&self) -> usize {
        self.transports.len()
    }

    /// Parks all devices and takes them down; [`Self::resume`] lets them go on.
    pub fn save(&self) -> Vec<SavedTransport> {
        self.transports.iter().map(Transport::save).collect()
    }

    /// The devices become those that were saved.
    pub fn restore(&self, saved: &[SavedTransport]) -> Result<(), RestoreError> {
        let (found, expected) = (saved.len(), self.transports.len());
        if found != expected {
            return Err(RestoreError::Count { found, expected });
        }
        let mut pairs = (0..).zip(self.transports.iter().zip(saved));
        pairs.try_for_each(|(index, (transport, saved))| transport.restore(saved, index))
    }

    /// Sets parked devices to work.
    pub fn resume(&self) -> Result<(), RestoreError> {
        let mut all = (0..).zip(&self.transports);
        all.try_for_each(|(index, transport)| transport.resume(index))
    }

    /// A read of device memory; an address without a device reads as ones.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((transport, offset)) => transport.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A write to device memory; an address without a device ignores it.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((transport, offset)) = self.find(address) {
            transport.write(offset, data);
        }
    }

    /// A read of an I/O port.
    pub fn port_in(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if let (Some(serial), Some(offset), [byte]) = (&self.serial, serial_offset(port), data) {
            *byte = lock(serial).read(offset);
        }
    }

    /// A write to an I/O port.
    pub fn port_out(&self, port: u16, data: &[u8]) -> Outcome {
        let [byte] = data else {
            return Outcome::Continue;
        };
        if port == KEYBOARD_CONTROLLER && *byte == PULSE_RESET {
            return Outcome::Reset;
        }
        if let (Some(serial), Some(offset)) = (&self.serial, serial_offset(port)) {
            lock(serial).write(offset, *byte);
        }
        Outcome::Continue
    }

    fn find(&self, address: u64) -> Option<(&Transport, u64)> {
        let offset = address.checked_sub(DEVICES)?;
        let index = usize::try_from(offset / DEVICE_SIZE).ok()?;
        Some((self.transports.get(index)?, offset % DEVICE_SIZE))
    }
}

fn serial_offset(port: u16) -> Option<u8> {
    let offset = port.checked_sub(SERIAL_PORT)?;
    (offset < SERIAL_PORTS).then_some(offset as u8)
}

/// A panic ends the process, so no lock is ever poisoned.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_without_a_device_are_harmless() {
        let bus = Bus::new(Vec::new(), None);
        for address in [0, DEVICES - 1, DEVICES, DEVICES + 0x5000, u64::MAX] {
            let mut data = [0; 4];
            bus.read(address, &mut data);
            assert_eq!(data, [0xff; 4]);
            bus.write(address, &data);
        }
        let mut byte = [0];
        bus.port_in(0x3f8, &mut byte);
        assert_eq!(byte, [0xff]);
        assert_eq!(bus.port_out(0x3f8, &[1]), Outcome::Continue);
    }

    #[test]
    fn keyboard_controller_resets() {
        let bus = Bus::new(Vec::new(), None);
        assert_eq!(bus.port_out(0x64, &[0xfe]), Outcome::Reset);
        assert_eq!(bus.port_out(0x64, &[0xd1]), Outcome::Continue);
        assert_eq!(bus.port_out(0x64, &[0xfe, 0]), Outcome::Continue);
    }
}
