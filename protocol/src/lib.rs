//! What the shim and the agent say to each other beyond containerd's Task API.
//!
//! The shim forwards containerd's own messages; `guest.proto` holds only what
//! they lack. Both sides distrust each other's lengths and names.

pub mod forward;
pub mod ids;
pub mod ports;

/// Messages generated from `guest.proto`.
#[allow(missing_docs, nonstandard_style, clippy::all, unused)]
pub mod guest {
    include!(concat!(env!("OUT_DIR"), "/guest.rs"));
}

/// Client and server stubs generated from `guest.proto`.
#[allow(missing_docs, nonstandard_style, clippy::all, unused)]
pub mod guest_ttrpc {
    use crate::guest;
    include!(concat!(env!("OUT_DIR"), "/guest_ttrpc.rs"));
}

/// Messages generated from `shim.proto`.
#[allow(missing_docs, nonstandard_style, clippy::all, unused)]
pub mod shim {
    include!(concat!(env!("OUT_DIR"), "/shim.rs"));
}

/// Client and server stubs generated from `shim.proto`.
#[allow(missing_docs, nonstandard_style, clippy::all, unused)]
pub mod shim_ttrpc {
    use crate::shim;
    include!(concat!(env!("OUT_DIR"), "/shim_ttrpc.rs"));
}
