//! The descriptors that travel with actions.

/// What a VM is booted from, sent with [`crate::Action::Boot`]. It is opened by the VMM's
/// owner: the VMM itself opens nothing. `F` is a borrowed descriptor when sent, an owned
/// one when received.
#[derive(Debug)]
pub struct BootFiles<F> {
    /// /dev/kvm, open for reading and writing.
    pub kvm: F,
    /// The guest kernel: an uncompressed x86-64 ELF image (vmlinux), open for reading.
    pub kernel: F,
    /// The initramfs: an uncompressed cpio archive with `/init`, open for reading.
    pub initramfs: F,
    /// Where console output goes; given exactly when `VmSpec::console` is set.
    pub serial: Option<F>,
}

/// What a VM is restored from, sent with [`crate::Action::Restore`].
#[derive(Debug)]
pub struct RestoreFiles<F> {
    /// As in [`BootFiles`].
    pub kvm: F,
    /// The kernel that runs in the snapshot.
    pub kernel: F,
    /// Guest memory, open for reading; nobody may make it shorter.
    pub memory: F,
    /// Everything else, open for reading.
    pub state: F,
    /// Which pages the guest writes to soon ([`crate::Action::Changes`]), open for reading: it
    /// gets its own copies of them at once.
    pub changes: Option<F>,
}

/// What a VM runs on, sent with [`crate::Action::Run`].
#[derive(Debug)]
pub struct RunFiles<F> {
    /// Backing of vdb, open for reading and writing.
    pub scratch: F,
    /// A listening Unix stream socket: the host side of the guest's vsock.
    pub vsock_listener: F,
    /// The NIC's TAP with IFF_VNET_HDR, if the sandbox has a network of its own.
    pub tap: Option<F>,
    /// A new owner's.
    pub outlets: Option<Outlets<F>>,
}

/// Where a VMM says what nobody asked for.
#[derive(Debug)]
pub struct Outlets<F> {
    /// Stream of [`crate::Event`]s.
    pub events: F,
    /// Standard error.
    pub log: F,
}

/// Most descriptors that an action carries.
pub const MAX_FILES: usize = 8;

impl<F> BootFiles<F> {
    /// The descriptors in the order in which they are sent.
    pub fn into_list(self) -> Vec<F> {
        let mut list = vec![self.kvm, self.kernel, self.initramfs];
        list.extend(self.serial);
        list
    }

    /// The reverse of [`Self::into_list`]; `None` when the number is wrong.
    pub fn from_list(list: Vec<F>, serial: bool) -> Option<Self> {
        if list.len() != 3 + usize::from(serial) {
            return None;
        }
        let mut files = list.into_iter();
        Some(Self {
            kvm: files.next()?,
            kernel: files.next()?,
            initramfs: files.next()?,
            serial: files.next(),
        })
    }
}

impl<F> RestoreFiles<F> {
    /// The descriptors in the order in which they are sent.
    pub fn into_list(self) -> Vec<F> {
        let mut list = vec![self.kvm, self.kernel, self.memory, self.state];
        list.extend(self.changes);
        list
    }

    /// The reverse of [`Self::into_list`]; `None` when the number is wrong.
    pub fn from_list(list: Vec<F>) -> Option<Self> {
        if !(4..=5).contains(&list.len()) {
            return None;
        }
        let mut files = list.into_iter();
        Some(Self {
            kvm: files.next()?,
            kernel: files.next()?,
            memory: files.next()?,
            state: files.next()?,
            changes: files.next(),
        })
    }
}

impl<F> RunFiles<F> {
    /// The descriptors in the order in which they are sent.
    pub fn into_list(self) -> Vec<F> {
        let mut list = vec![self.scratch, self.vsock_listener];
        list.extend(self.tap);
        if let Some(Outlets { events, log }) = self.outlets {
            list.extend([events, log]);
        }
        list
    }

    /// The reverse of [`Self::into_list`]; `None` when the number is wrong.
    pub fn from_list(list: Vec<F>, tap: bool, outlets: bool) -> Option<Self> {
        if list.len() != 2 + usize::from(tap) + 2 * usize::from(outlets) {
            return None;
        }
        let mut files = list.into_iter();
        Some(Self {
            scratch: files.next()?,
            vsock_listener: files.next()?,
            tap: if tap { files.next() } else { None },
            outlets: match (files.next(), files.next()) {
                (Some(events), Some(log)) => Some(Outlets { events, log }),
                _ => None,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_survive_the_journey_with_and_without_the_optional_ones() {
        for serial in [false, true] {
            let files = BootFiles {
                kvm: 1,
                kernel: 2,
                initramfs: 3,
                serial: serial.then_some(7),
            };
            let back = BootFiles::from_list(files.into_list(), serial).unwrap();
            assert_eq!((back.kvm, back.initramfs), (1, 3));
            assert_eq!(back.serial, serial.then_some(7));
        }
        for (tap, outlets) in [(false, false), (true, false), (false, true), (true, true)] {
            let files = RunFiles {
                scratch: 4,
                vsock_listener: 5,
                tap: tap.then_some(6),
                outlets: outlets.then_some(Outlets { events: 7, log: 8 }),
            };
            let back = RunFiles::from_list(files.into_list(), tap, outlets).unwrap();
            assert_eq!((back.scratch, back.vsock_listener), (4, 5));
            assert_eq!(back.tap, tap.then_some(6));
            let back = back.outlets.map(|outlets| (outlets.events, outlets.log));
            assert_eq!(back, outlets.then_some((7, 8)));
        }
        for changes in [None, Some(5)] {
            let files = RestoreFiles {
                kvm: 1,
                kernel: 2,
                memory: 3,
                state: 4,
                changes,
            };
            let back = RestoreFiles::from_list(files.into_list()).unwrap();
            assert_eq!(
                (back.kvm, back.kernel, back.memory, back.state, back.changes),
                (1, 2, 3, 4, changes)
            );
        }
    }

    #[test]
    fn refuses_a_wrong_number() {
        assert!(BootFiles::from_list(vec![0; 3], true).is_none());
        assert!(BootFiles::from_list(vec![0; 4], false).is_none());
        assert!(RestoreFiles::from_list(vec![0; 3]).is_none());
        assert!(RestoreFiles::from_list(vec![0; 6]).is_none());
        assert!(RunFiles::from_list(vec![0; 1], false, false).is_none());
        assert!(RunFiles::from_list(vec![0; 3], false, false).is_none());
        assert!(RunFiles::from_list(vec![0; 3], false, true).is_none());
    }
}
