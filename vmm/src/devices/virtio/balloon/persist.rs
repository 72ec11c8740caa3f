//! What is saved of the balloon beside its queues.

use serde::{Deserialize, Serialize};

/// The balloon, as plain data. Which pages are in it only the guest knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedBalloon {
    /// Pages that shall be in it.
    pub target: u32,
}
