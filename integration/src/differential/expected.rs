//! The differences that are meant, each with its reason: docs/differential.md shows this table.

/// A difference that is meant. In patterns `*` stands for any text.
#[derive(Debug)]
pub struct Meant {
    /// A pattern of the cases' names.
    pub cases: &'static str,
    /// Patterns of places in what was observed of them.
    pub places: &'static [&'static str],
    /// Why joey does not do as runc does.
    pub reason: &'static str,
}

const fn meant(
    cases: &'static str,
    places: &'static [&'static str],
    reason: &'static str,
) -> Meant {
    Meant {
        cases,
        places,
        reason,
    }
}

/// The table. The first entry that fits a difference explains it.
pub const MEANT: &[Meant] = &[
    meant(
        "*",
        &["*/status/SigIgn"],
        "signals that the caller ignores have their default again; a container of runc goes on to \
            ignore them",
    ),
    meant(
        "*",
        &["*/output/owner"],
        "`state` names the owner as `list` does; runc's is empty there",
    ),
    meant(
        "*",
        &[
            "*/mounts//sys/0/superblock",
            "*/mounts//sys/fs/cgroup/0/superblock",
        ],
        "a file system of the kernel that is to be read-only is so as a mount; runc's is so as a \
            whole, which other mounts of it notice",
    ),
    meant(
        "*",
        &["*/mounts//proc/acpi/0/s*", "*/mounts//sys/firmware/0/s*"],
        "a masked directory is under a tmpfs that is read-only as a mount; runc's is so as a file \
            system too, of 4 KiB",
    ),
    meant(
        "*",
        &["*/mounts//proc/k*/0/*", "*/mounts//proc/timer_list/0/*"],
        "a masked file is under the host's /dev/null, which no image can have replaced; runc binds \
            the container's after checking it",
    ),
    meant(
        "capabilities/missing",
        &["*/calls/*", "*/status/Cap*", "*/guarded/*"],
        "without a list of capabilities a container has none; runc gives it all that it has itself",
    ),
    meant(
        "capabilities/missing-for-a-user",
        &["*/status/CapBnd"],
        "without a list of capabilities a container has none; runc gives it all that it has itself",
    ),
    meant(
        "cgroup/cpu-idle-with-shares",
        &["/steps"],
        "a group that runs when nothing else does has no weight: `idle` wins, and runc fails on the \
            kernel's refusal",
    ),
    meant(
        "cgroup/io-weight-bad",
        &["/steps"],
        "a weight below the range is the lowest; runc's arithmetic makes it 18633074821928790",
    ),
    meant(
        "cgroup/path-leads-out",
        &["/steps"],
        "a cgroupsPath with `..` is refused; runc cuts it short",
    ),
    meant(
        "cgroup/path-of-systemd",
        &["*/seen/cgroup"],
        "a path in systemd's form is the scope that systemd would make of it with either driver; \
            runc makes a directory of that name with cgroupfs",
    ),
    meant(
        "devices/a-standard-one",
        &["/steps"],
        "a standard device in the spec's list is made like any other; with these rules runc cannot \
            open the one that it made",
    ),
    meant(
        "devices/over-a-file",
        &["/steps"],
        "a device is not put in the place of a file of the image that is something else",
    ),
    meant(
        "devices/*elative",
        &["/steps"],
        "a device's path must be absolute",
    ),
    meant("devices/without-path", &["/steps"], "a device needs a path"),
    meant(
        "devices/rule-bad-access",
        &["/steps"],
        "access that is none of r, w and m is refused; runc takes it for none",
    ),
    meant(
        "devices/rule-without-access",
        &["/steps"],
        "a rule without access is for all of it, as the specification has it optional",
    ),
    meant(
        "devices/rule-deny-one",
        &["*/errors", "*/output"],
        "rules count in their order, and what every container may do is the last of them: making a \
            node, which then cannot be opened. runc keeps a rule for one device above that",
    ),
    meant(
        "documents/net-devices-missing",
        &["/steps"],
        "network devices of the specification's version 1.3 are moved; runc 1.3 does not know them",
    ),
    meant(
        "documents/root-has-dots",
        &["*/output/rootfs"],
        "`state` shows the root's path as the spec writes it",
    ),
    meant(
        "documents/root-is-a-link",
        &["/steps"],
        "a root behind a link is used: the path is the caller's, not the container's",
    ),
    meant(
        "documents/version-*",
        &["/steps"],
        "versions of the specification other than 1.x are refused; runc takes any",
    ),
    meant(
        "documents/without-version",
        &["/steps"],
        "a spec must have a version; runc takes any",
    ),
    meant(
        "documents/without-mounts",
        &["/steps"],
        "a container without /proc can be made; runc reads it inside",
    ),
    meant(
        "documents/smallest",
        &["*/output/0"],
        "a process has HOME, also when its list of variables is missing",
    ),
    meant(
        "process/env-missing",
        &["*/environment"],
        "a process has HOME, also when its list of variables is missing",
    ),
    meant(
        "exec/*",
        &["*/output/descriptors/*"],
        "a command without a terminal has the caller's streams; runc copies between pipes",
    ),
    meant(
        "run/*",
        &["*/output/descriptors/*"],
        "a command without a terminal has the caller's streams; runc copies between pipes",
    ),
    meant(
        "exec/groups",
        &["*/status", "*/output"],
        "`-g` and `--additional-gids` may be mixed",
    ),
    meant(
        "exec/process-file",
        &[
            "*/mode of what it made/*",
            "*/oom_score_adj",
            "*/status/Umask",
        ],
        "umask and OOM score of a process file count; runc passes over them",
    ),
    meant(
        "exec/process-file-scheduling",
        &["*/limits/*"],
        "a process file without limits leaves the process those of the container; runc gives it the \
            caller's",
    ),
    meant(
        "hooks/all",
        &["*/status"],
        "poststart hooks run after the command has started, and see it running; runc runs them at \
            `create`",
    ),
    meant(
        "hooks/missing-program-inside",
        &["*/status", "*/end"],
        "a startContainer hook that fails makes `start` fail; runc's has returned by then",
    ),
    meant(
        "hooks/start-container-*",
        &["*/status", "*/end"],
        "a startContainer hook that fails makes `start` fail; runc's has returned by then",
    ),
    meant(
        "hooks/post*",
        &[
            "*/names the field",
            "*/status",
            "*/end",
            "*/errors",
            "*/output",
        ],
        "a poststart or poststop hook that fails is a warning, as the specification has it",
    ),
    meant(
        "hooks/second-poststop-after-failure",
        &["*/names the field", "*/status", "*/output"],
        "a poststart or poststop hook that fails is a warning, and the next ones run, as the \
            specification has it",
    ),
    meant(
        "hooks/surroundings-of-*",
        &["*/output/*"],
        "a hook's directory, of which the specification says nothing, is the caller's or the \
            bundle; startContainer hooks have no descriptors of the runtime",
    ),
    meant(
        "mounts/bind-without-bind-option",
        &["/steps"],
        "the type `bind` is enough for a bind mount",
    ),
    meant(
        "mounts/cgroup-without-namespace",
        &["*/source", "*/propagation"],
        "the container's part of the host's cgroups is bound from there, and has its source",
    ),
    meant(
        "namespaces/host-cgroup",
        &["*/source", "*/propagation"],
        "the container's part of the host's cgroups is bound from there, and has its source",
    ),
    meant(
        "users/namespace-bind",
        &["*/propagation"],
        "a bound directory follows its mounts on the host (rslave, the root's default), in a user \
            namespace as well as without",
    ),
    meant(
        "mounts/defaults",
        &["/steps"],
        "the option `defaults` is taken, as mount(8) does; runc hands it to the file system",
    ),
    meant(
        "mounts/masked*",
        &["*/mounts//*", "*/root//etc"],
        "what covers a masked path is made otherwise (see above)",
    ),
    meant(
        "mounts/masked*",
        &["*/keyrings/*"],
        "session keyrings have no name of their own, by which others could be led to them",
    ),
    meant(
        "mounts/masked-below-file",
        &["/steps"],
        "a masked path below a file is not there, and is passed over like any that is missing",
    ),
    meant(
        "mounts/masked-relative",
        &["/steps"],
        "masked paths must be absolute",
    ),
    meant("mounts/proc-elsewhere", &["*/superblock"], "as for /sys"),
    meant(
        "mounts/readonly-path-with-mounts",
        &["*/options"],
        "a read-only path is so with all that is mounted below",
    ),
    meant(
        "mounts/rro-of-tmpfs",
        &["*/options"],
        "`rro` makes a tmpfs read-only too",
    ),
    meant(
        "mounts/source-empty",
        &["/steps"],
        "a bind mount needs a source; runc binds its working directory",
    ),
    meant(
        "mounts/tmpfs-bare",
        &["*/source"],
        "a tmpfs without a source has the kernel's word for it",
    ),
    meant(
        "mounts/tmpfs-copyup",
        &["*/output/1"],
        "`tmpcopyup` copies owners too",
    ),
    meant(
        "namespaces/host-mount-with-masks",
        &["/steps"],
        "a container without a mount namespace may have masked paths, which go with it",
    ),
    meant(
        "namespaces/none",
        &["/steps"],
        "a container without a mount namespace may have masked paths, which go with it",
    ),
    meant(
        "privileges/mount-label",
        &["/steps"],
        "a mount label counts where the kernel has SELinux, and is passed over elsewhere",
    ),
    meant(
        "process/args-not-a-program",
        &["*/status", "*/end", "*/errors"],
        "`start` fails when the command cannot be executed, which exits as a shell would say; \
            runc's `start` has returned by then",
    ),
    meant(
        "process/args-without-interpreter",
        &["*/status", "*/end", "*/errors"],
        "`start` fails when the command cannot be executed, which exits as a shell would say; \
            runc's `start` has returned by then",
    ),
    meant(
        "process/args-with-nul",
        &["/steps"],
        "a zero byte in an argument is refused; runc cuts it off",
    ),
    meant(
        "process/args-without-path",
        &["/steps"],
        "a command is looked for in the usual places when there is no PATH",
    ),
    meant(
        "process/cwd-link-outside",
        &["/steps"],
        "a working directory behind a link is made inside the root; runc gives up",
    ),
    meant(
        "process/memory-policy",
        &["*/mempolicy/*"],
        "memory policies of the specification's version 1.3 are set; runc 1.3 does not know them",
    ),
    meant(
        "process/rlimit-twice",
        &["/steps"],
        "a limit that is given twice is refused, as the specification demands",
    ),
    meant(
        "process/missing-descriptors",
        &["/left/state"],
        "nothing is left of a container whose descriptors are missing",
    ),
    meant(
        "run/keep",
        &["/left/state"],
        "the kept state has one more file",
    ),
    meant(
        "run/terminal-without-terminal",
        &["*/output", "*/status"],
        "a terminal can be had without one on the caller's side",
    ),
    meant(
        "seccomp/notify-with-missing-listener",
        &["/steps"],
        "the filter begins with the command, and its agent is looked for then",
    ),
    meant(
        "seccomp/without-calls",
        &["*/status/Seccomp*"],
        "a profile that allows everything is no filter",
    ),
    meant(
        "*",
        &["*/output/dev//dev/mqueue"],
        "the queues' directory of a new user namespace is nobody's, for the namespaces are made at \
            one go; it is open to all (1777) with both",
    ),
    meant(
        "users/mappings-without-namespace",
        &["/steps"],
        "mappings without a user namespace are refused; runc passes over them",
    ),
    meant(
        "verbs/features",
        &["*/output/*"],
        "each has annotations and lists of its own",
    ),
    meant(
        "verbs/kill-realtime",
        &["*/status"],
        "real-time signals have their names (RTMIN+1)",
    ),
    meant(
        "verbs/another-root",
        &["*/output"],
        "no state directory means no containers, and is no error",
    ),
    meant(
        "verbs/list-nothing",
        &["*/output", "*/status"],
        "no state directory means no containers, and is no error",
    ),
    meant(
        "verbs/version",
        &["*/output"],
        "the program's version and the specification's are all there is to tell",
    ),
    meant(
        "verbs/spec",
        &["*/output/*"],
        "the host's name is joey, and an absent list is an empty one",
    ),
    meant(
        "verbs/stats",
        &[
            "*/data/blkio/io*",
            "*/data/cpu/throttling/*",
            "*/data/cpuset/*",
            "*/data/memory/*",
            "*/data/pids/*",
            "*/data/hugetlb/*",
        ],
        "counters that are 0 are shown where the controller counts them, and left out where it does \
            not; runc's do it the other way round",
    ),
];

/// The place of the entry that explains a difference, in the table.
pub fn entry(case: &str, at: &str) -> Option<usize> {
    MEANT.iter().position(|meant| {
        matches(meant.cases, case) && meant.places.iter().any(|place| matches(place, at))
    })
}

/// Whether a text is as a pattern says.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            let mut ends = (0..=text.len()).filter(|end| text.is_char_boundary(*end));
            ends.any(|end| matches(rest, &text[end..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        for text in ["/a/b", "x/a//b", "/a/bb/b"] {
            assert!(matches("*/a/*b", text), "{text}");
        }
        assert!(!matches("*/a/*b", "/a/bc"));
        assert!(!matches("/a", "/a/b"));
    }
}
