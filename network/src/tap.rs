//! The TAP: the host's end of the guest's NIC.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

use crate::sys;

/// Length of the virtio-net header before each frame read from and written to
/// the TAP: `struct virtio_net_hdr_v1` of the virtio specification.
pub const VNET_HEADER_BYTES: usize = 12;

/// What the TAP is made with: the frames it yields may have partial checksums
/// (`TUN_F_CSUM`) and be larger than the MTU, TCP only (`TUN_F_TSO4`,
/// `TUN_F_TSO6`).
///
/// Whoever reads the TAP narrows or widens this to what the guest's driver
/// negotiated; the kernel does in software what is left out.
pub const OFFLOADS: u32 = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;

const DEVICE: &str = "/dev/net/tun";

/// Why a TAP could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TapError {
    /// The TUN device does not open.
    #[error("opening {DEVICE}; load the kernel module tun")]
    Device(#[source] io::Error),
    /// An interface of this name is there.
    #[error("an interface of that name exists; is another sandbox attached to this namespace?")]
    Exists,
    /// The kernel refused the interface or a setting of it.
    #[error("{action}; CAP_NET_ADMIN is needed")]
    Refused {
        /// What was being done.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A TAP in the namespace it was made in; gone when its descriptor is closed.
pub(crate) struct Tap {
    /// Not blocking, closed on exec.
    pub(crate) fd: OwnedFd,
    pub(crate) index: u32,
}

impl Tap {
    /// Makes the TAP `name` in the calling thread's namespace, down.
    pub(crate) fn create(name: &str) -> Result<Self, TapError> {
        let refused = |action| move |source| TapError::Refused { action, source };
        let fd: OwnedFd = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(DEVICE)
            .map_err(TapError::Device)?
            .into();
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
        sys::set_interface(fd.as_fd(), name, flags).map_err(|source| {
            match source.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EBUSY | Errno::EEXIST) => TapError::Exists,
                _ => refused("making the interface")(source),
            }
        })?;
        sys::set_vnet_header(fd.as_fd(), VNET_HEADER_BYTES as i32)
            .map_err(refused("setting the header's length"))?;
        set_offloads(fd.as_fd(), OFFLOADS).map_err(refused("setting the offloads"))?;
        let index =
            if_nametoindex(name).map_err(|errno| refused("finding its index")(errno.into()))?;
        Ok(Self { fd, index })
    }
}

/// Tells the kernel which frames the reader of `tap` takes, as `TUN_F_*` of
/// `linux/if_tun.h`. Needs no capability: the holder of the descriptor may.
///
/// # Errors
///
/// `EINVAL` where the kernel does not know a flag; `TUN_F_USO4` and
/// `TUN_F_USO6` came with 6.2.
pub fn set_offloads(tap: BorrowedFd, offloads: u32) -> io::Result<()> {
    sys::set_offload(tap, offloads)
}
