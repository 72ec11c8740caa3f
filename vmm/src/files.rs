//! The descriptors that travel with [`crate::Action::Boot`].

/// Everything the VMM needs from the file system, opened by its owner: the VMM
/// itself opens nothing. `F` is a borrowed descriptor when sent, an owned one
/// when received.
#[derive(Debug)]
pub struct BootFiles<F> {
    /// /dev/kvm, open for reading and writing.
    pub kvm: F,
    /// The guest kernel: an uncompressed x86-64 ELF image (vmlinux), open for reading.
    pub kernel: F,
    /// The initramfs: an uncompressed cpio archive with `/init`, open for reading.
    pub initramfs: F,
    /// Backing of vdb, open for reading and writing; its length is the disk's capacity.
    pub scratch: F,
    /// A listening Unix stream socket: the host side of the guest's vsock.
    pub vsock_listener: F,
    /// The NIC's TAP with IFF_VNET_HDR; given exactly when `VmSpec::net` is.
    pub tap: Option<F>,
    /// Where console output goes; given exactly when `VmSpec::console` is set.
    pub serial: Option<F>,
}

/// Number of descriptors that are always there.
const FIXED: usize = 5;

/// Most descriptors that a boot carries.
pub const MAX_FILES: usize = FIXED + 2;

impl<F> BootFiles<F> {
    /// The descriptors in the order in which they are sent.
    pub fn into_list(self) -> Vec<F> {
        let mut list = vec![
            self.kvm,
            self.kernel,
            self.initramfs,
            self.scratch,
            self.vsock_listener,
        ];
        list.extend(self.tap);
        list.extend(self.serial);
        list
    }

    /// The reverse of [`Self::into_list`]; `None` when the number is wrong.
    pub fn from_list(list: Vec<F>, tap: bool, serial: bool) -> Option<Self> {
        if list.len() != FIXED + usize::from(tap) + usize::from(serial) {
            return None;
        }
        let mut files = list.into_iter();
        Some(Self {
            kvm: files.next()?,
            kernel: files.next()?,
            initramfs: files.next()?,
            scratch: files.next()?,
            vsock_listener: files.next()?,
            tap: if tap { files.next() } else { None },
            serial: files.next(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_the_journey_with_and_without_the_optional_files() {
        for (tap, serial) in [(false, false), (true, false), (false, true), (true, true)] {
            let files = BootFiles {
                kvm: 1,
                kernel: 2,
                initramfs: 3,
                scratch: 4,
                vsock_listener: 5,
                tap: tap.then_some(6),
                serial: serial.then_some(7),
            };
            let back = BootFiles::from_list(files.into_list(), tap, serial).unwrap();
            assert_eq!((back.kvm, back.vsock_listener), (1, 5));
            assert_eq!(back.tap, tap.then_some(6));
            assert_eq!(back.serial, serial.then_some(7));
        }
    }

    #[test]
    fn refuses_a_wrong_number() {
        assert!(BootFiles::from_list(vec![0; 5], true, false).is_none());
        assert!(BootFiles::from_list(vec![0; 6], false, false).is_none());
    }
}
