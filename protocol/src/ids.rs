//! Names shared by shim and agent, and what an id may look like.

/// `type_url` of [`crate::guest::CreateOptions`] in a CreateTaskRequest.
pub const CREATE_OPTIONS: &str = "joey.guest/CreateOptions";

/// Prefix of a bind mount's source that stands for `CreateOptions.files[INDEX]`.
pub const FILE_SOURCE: &str = "joey-file:";

/// Prefix of a bind mount's source that stands for `CreateOptions.volumes[INDEX]`.
pub const VOLUME_SOURCE: &str = "joey-volume:";

/// Most bytes of a file that a container gives back. A termination message is
/// read up to 4 KiB.
pub const MAX_GIVEN_BACK: usize = 64 << 10;

/// Bind-mount source of the pod's shared /dev/shm in the guest.
pub const SHM_PATH: &str = "/run/joey/shm";

/// MAC of a guest's NIC until the agent gives it the pod's.
pub const FIRST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];

/// Longest id of a sandbox, container or exec, in bytes (containerd's own limit).
pub const MAX_ID: usize = 76;

/// Whether `id` is safe as a path component on either side: containerd's own
/// rule (letters and digits joined by `-`, `_`, `.`), at most [`MAX_ID`] bytes.
pub fn is_valid(id: &str) -> bool {
    let bytes = id.as_bytes();
    let alphanumeric = |i: Option<&u8>| i.is_some_and(u8::is_ascii_alphanumeric);
    bytes.len() <= MAX_ID
        && alphanumeric(bytes.first())
        && alphanumeric(bytes.last())
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::is_valid;

    #[test]
    fn accepts_what_containerd_makes() {
        for id in ["a", "web-1", "a_b.c", &"f".repeat(64)] {
            assert!(is_valid(id), "{id}");
        }
    }

    #[test]
    fn refuses_what_could_leave_a_directory() {
        for id in [
            "",
            ".",
            "..",
            "a/b",
            "-a",
            "a.",
            "a\0b",
            "ä",
            &"f".repeat(77),
        ] {
            assert!(!is_valid(id), "{id:?}");
        }
    }
}
