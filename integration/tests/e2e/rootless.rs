//! joey's command line in the hands of an ordinary user of the host.

use integration::testbed::Output;
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::cri::{fails, merge, parse, quote, run, sh, text, write};
use crate::trial;

const CGROUPS: &str = "/sys/fs/cgroup";
/// Where the cgroup lies that root gives to the user.
const DELEGATED: &str = "of-ann";
/// Where users have their cgroups on a host with systemd, and their containers in their own part.
const SLICE: &str = "user.slice";

pub fn trials() -> Vec<Trial> {
    vec![
        trial("rootless::own_id", own_id),
        trial("rootless::range_of_ids", range_of_ids),
        trial("rootless::whole_life", whole_life),
        trial("rootless::without_a_cgroup", without_a_cgroup),
        trial("rootless::delegated_cgroup", delegated_cgroup),
        trial("rootless::own_systemd", own_systemd),
    ]
}

/// A user, with a bundle in the home directory. Removed when dropped, which fails while a process
/// of the user is left.
struct User {
    uid: u32,
    gid: u32,
    /// The first of the 65536 ids that are the user's beside its own.
    range: u32,
    /// The cgroup in which the user's commands run, where it is not that of all commands.
    cgroup: Option<String>,
}

impl User {
    fn new() -> Self {
        // It also gives out ranges, in /etc/subuid and /etc/subgid.
        sh("useradd --create-home ann");
        let number = |script: &str| sh(script).parse().expect("an id");
        let user = Self {
            uid: number("id -u ann"),
            gid: number("id -g ann"),
            range: number("sed -n 's/^ann:\\(.*\\):65536$/\\1/p' /etc/subuid"),
            cgroup: None,
        };
        sh(&format!(
            "install -d -m 700 -o ann -g ann {}",
            user.run_dir()
        ));
        user.sh(
            "mkdir -p rootfs/bin rootfs/etc rootfs/tmp rootfs/proc rootfs/sys rootfs/dev
            chmod 1777 rootfs/tmp
            cp /usr/bin/busybox rootfs/bin
            for applet in sh id cat chown touch su sleep hostname; do
                ln -s busybox rootfs/bin/$applet
            done
            echo root:x:0:0::/:/bin/sh > rootfs/etc/passwd
            echo bob:x:1000:1000::/:/bin/sh >> rootfs/etc/passwd",
        );
        user
    }

    /// What a login makes: $XDG_RUNTIME_DIR.
    fn run_dir(&self) -> String {
        format!("/run/user/{}", self.uid)
    }

    /// A command that runs a script as the user, in the bundle.
    fn command(&self, script: &str) -> String {
        let enter = match &self.cgroup {
            Some(cgroup) => format!("echo $$ > {CGROUPS}/{cgroup}/cgroup.procs; exec"),
            None => "exec".to_owned(),
        };
        let script = format!("mkdir -p ~/bundle; cd ~/bundle; {script}");
        let inner = format!(
            "{enter} setpriv --reuid ann --regid ann --init-groups env -i HOME=/home/ann \
             USER=ann XDG_RUNTIME_DIR={} PATH=/usr/local/bin:/usr/bin:/bin sh -ec {}",
            self.run_dir(),
            quote(&script)
        );
        format!("sh -ec {}", quote(&inner))
    }

    fn run(&self, script: &str) -> Output {
        run(&self.command(script))
    }

    fn sh(&self, script: &str) -> String {
        sh(&self.command(script))
    }

    fn fails(&self, script: &str) -> String {
        fails(&self.command(script))
    }

    /// Gives the bundle the spec that joey proposes, with changes.
    fn configure(&self, changes: Value) {
        let mut spec = parse(&self.sh("rm -f config.json; joey spec --rootless; cat config.json"));
        merge(
            &mut spec,
            json!({"process": {"terminal": false}, "root": {"readonly": false}}),
        );
        merge(&mut spec, changes);
        write("/home/ann/bundle/config.json", &spec);
    }

    /// Changes that map the user to root, and ids from 1 on to the user's range.
    fn with_range(&self, size: u32) -> Value {
        let map = |own: u32| {
            json!([
                {"containerID": 0, "hostID": own, "size": 1},
                {"containerID": 1, "hostID": self.range, "size": size},
            ])
        };
        let rights = json!(["CAP_CHOWN", "CAP_SETUID", "CAP_SETGID"]);
        json!({
            "process": {"capabilities":
                {"bounding": rights, "effective": rights, "permitted": rights}},
            "linux": {"uidMappings": map(self.uid), "gidMappings": map(self.gid)},
        })
    }

    /// Runs a container in the background.
    fn start(&self, options: &str, id: &str) {
        // The container keeps what it gets as its streams.
        self.sh(&format!(
            "joey {options} run --detach {id} >output 2>&1 </dev/null || {{ cat output; exit 1; }}"
        ));
    }

    fn status(&self, id: &str) -> String {
        let state = parse(&self.sh(&format!("joey state {id}")));
        state["status"].as_str().unwrap_or_default().to_owned()
    }

    /// Where a container's first process is in the hierarchy.
    fn cgroup_of(&self, id: &str) -> String {
        let state = parse(&self.sh(&format!("joey state {id}")));
        sh(&format!("sed -n s,^0::/,,p /proc/{}/cgroup", state["pid"]))
    }

    /// Sees that a container of [`limited`] is in a cgroup which has the limits, and is joined
    /// there.
    fn sees_limits(&self, id: &str, cgroup: &str) {
        assert_eq!(self.cgroup_of(id), cgroup);
        let limits = format!("cd {CGROUPS}/{cgroup}; cat pids.max memory.max");
        assert_eq!(sh(&limits), "20\n67108864");
        self.sh(&format!(
            "joey exec --detach {id} sleep 2000 >output 2>&1 </dev/null"
        ));
        let listed = self.sh(&format!("joey ps {id}"));
        for command in ["sleep 1000", "sleep 2000"] {
            assert!(listed.contains(command), "{listed}");
        }
    }

    /// Sees that no container is remembered.
    fn has_nothing(&self) {
        assert_eq!(self.sh("joey list -q; ls $XDG_RUNTIME_DIR/joey-oci"), "");
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What a failed test has left is in the next one's way.
            self.run("for id in $(joey list -q); do joey delete --force $id; done");
            run("pkill -KILL -u ann; sleep 1");
        }
        let removed = run(&format!("rm -r {} && userdel -r ann", self.run_dir()));
        // A second panic would hide the first one's message.
        if !std::thread::panicking() {
            let said = text(&removed.stderr);
            assert!(removed.status == 0, "userdel: {said}");
        }
    }
}

/// A spec whose command is a shell's script.
fn script(script: &str) -> Value {
    json!({"process": {"args": ["sh", "-c", script]}})
}

fn own_id() {
    let ann = User::new();
    ann.configure(script(
        "id -u; cat /proc/self/uid_map /proc/self/gid_map; touch /tmp/one; chown 1000 /tmp/one",
    ));
    let ended = ann.run("joey run own");
    let said = text(&ended.stdout);
    let words: Vec<&str> = said.split_whitespace().collect();
    let (uid, gid) = (ann.uid.to_string(), ann.gid.to_string());
    let expected = ["0", "0", &uid, "1", "0", &gid, "1"];
    assert_eq!(words, expected, "{}", text(&ended.stderr));
    // There is no other id.
    assert_ne!(ended.status, 0);
    assert!(text(&ended.stderr).contains("chown: /tmp/one: Invalid argument"));
    assert_eq!(
        sh("stat -c %U:%G /home/ann/bundle/rootfs/tmp/one"),
        "ann:ann"
    );
    ann.has_nothing();
}

/// By newuidmap and newgidmap.
fn range_of_ids() {
    let ann = User::new();
    let mut changes = ann.with_range(65536);
    merge(
        &mut changes,
        script(
            "cat /proc/self/uid_map /proc/self/gid_map; touch /tmp/one /tmp/two
            chown 1000:1001 /tmp/two && su bob -c 'id -u; touch /tmp/three'",
        ),
    );
    ann.configure(changes);
    let said = ann.sh("joey run range");
    let words: Vec<&str> = said.split_whitespace().collect();
    let (uid, gid, range) = (
        ann.uid.to_string(),
        ann.gid.to_string(),
        ann.range.to_string(),
    );
    let map = |own| ["0", own, "1", "1", &range, "65536"];
    assert_eq!(words[..6], map(&uid), "{said}");
    assert_eq!(words[6..12], map(&gid), "{said}");
    assert_eq!(words[12..], ["1000"], "{said}");
    let bob = ann.range + 999;
    let owners = format!("ann:ann\n{bob}:{}\n{bob}:{bob}", bob + 1);
    let files = "cd /home/ann/bundle/rootfs/tmp; stat -c %U:%G one; stat -c %u:%g two three";
    assert_eq!(sh(files), owners);

    // One id too many.
    ann.configure(ann.with_range(65537));
    let said = ann.fails("joey run more");
    assert!(said.contains("/etc/subuid"), "{said}");
    ann.has_nothing();
}

fn whole_life() {
    let ann = User::new();
    let mut changes = ann.with_range(65536);
    merge(
        &mut changes,
        json!({"process": {"args": ["sleep", "1000"]}}),
    );
    ann.configure(changes);
    ann.sh("joey create life >output 2>&1 </dev/null || { cat output; exit 1; }");
    assert_eq!(ann.status("life"), "created");
    ann.sh("joey start life");
    assert_eq!(ann.status("life"), "running");
    let listed = parse(&ann.sh("joey list --format json"));
    assert_eq!(listed[0]["id"], "life", "{listed}");
    assert_eq!(listed[0]["owner"], "ann", "{listed}");
    let ended = ann.run("joey exec life sh -c 'id -u; hostname; exit 4'");
    assert_eq!(ended.status, 4, "{}", text(&ended.stderr));
    assert_eq!(text(&ended.stdout), "0\njoey\n");
    assert_eq!(ann.sh("joey exec --user 1000 life id -u"), "1000");
    // Others have nothing to do with it.
    assert_eq!(sh("joey list -q"), "");

    let said = ann.fails("joey delete life");
    assert!(said.contains("running"), "{said}");
    ann.sh("joey kill life KILL");
    ann.sh("for i in $(seq 1000); do joey state life | grep -q stopped && exit 0; sleep 0.1; done; exit 1");
    ann.sh("joey delete life");
    ann.has_nothing();
}

/// In a part of the tree that is not the user's, a container has no cgroup and can have no limits.
fn without_a_cgroup() {
    let ann = User::new();
    ann.configure(json!({"process": {"args": ["sleep", "1000"]}}));
    ann.start("", "free");
    let own = sh("sed -n s,^0::/,,p /proc/self/cgroup");
    assert_eq!(ann.cgroup_of("free"), own);
    ann.sh("joey delete --force free");

    let refused = |linux: Value| {
        let mut changes = script("true");
        merge(&mut changes, json!({"linux": linux}));
        ann.configure(changes);
        ann.fails("joey run refused")
    };
    let said = refused(json!({"resources": {"pids": {"limit": 20}}}));
    assert!(
        said.contains("linux.resources.pids.limit: there is no cgroup for it"),
        "{said}"
    );
    let said = refused(json!({"cgroupsPath": "/named"}));
    assert!(said.contains("/named: Permission denied"), "{said}");
    ann.has_nothing();
}

/// A spec with limits that are seen in the cgroup.
fn limited() -> Value {
    json!({
        "process": {"args": ["sleep", "1000"]},
        "linux": {"resources": {"pids": {"limit": 20}, "memory": {"limit": 64 << 20}}},
    })
}

/// A cgroup that root has given to the user.
fn delegated_cgroup() {
    let mut ann = User::new();
    let place = format!("{CGROUPS}/{DELEGATED}");
    sh(&format!("mkdir -p {place}/shell; chown -R ann:ann {place}"));
    ann.cgroup = Some(format!("{DELEGATED}/shell"));
    ann.configure(limited());
    ann.start("", "cage");
    ann.sees_limits("cage", &format!("{DELEGATED}/cage"));
    ann.sh("joey update --pids-limit 30 cage");
    assert_eq!(sh(&format!("cat {place}/cage/pids.max")), "30");
    ann.sh("joey pause cage");
    assert_eq!(ann.status("cage"), "paused");
    ann.sh("joey resume cage");

    // From a part of the tree out of which the user may move nobody.
    ann.cgroup = None;
    let ended = ann.run("joey exec cage sh -c 'id -u; sleep 3000 >/dev/null 2>&1 &'");
    let said = text(&ended.stderr);
    assert_eq!(ended.status, 0, "{said}");
    assert!(said.contains("is not in the container's cgroup"), "{said}");
    assert_eq!(text(&ended.stdout), "0\n");
    sh("pgrep -f '[s]leep 3000'");
    ann.sh("joey delete --force cage");
    fails("pgrep -f '[s]leep 3000'");
    ann.has_nothing();
    sh(&format!("rmdir {place}/shell {place}"));
}

/// A systemd that the user has, as logins start it.
fn own_systemd() {
    let mut ann = User::new();
    let slice = format!("{SLICE}/user-{}.slice", ann.uid);
    let own = format!("{slice}/user@{}.service", ann.uid);
    // What the host's systemd does where there is one: the tree with its controllers, and the
    // sign that there is one, without which a user's does not run.
    sh(&format!(
        "mkdir -p {CGROUPS}/{own}/shell /run/systemd/system; cd {CGROUPS}
        for part in {SLICE} {slice}; do
            echo +cpu +memory +pids > $part/cgroup.subtree_control
        done
        chown -R ann:ann {own}"
    ));
    ann.cgroup = Some(own.clone());
    let systemd = ann.command("exec /usr/lib/systemd/systemd --user");
    sh(&format!("{systemd} </dev/null >/tmp/systemd.log 2>&1 &"));
    // Nothing may be in the same cgroup as others.
    ann.cgroup = Some(format!("{own}/shell"));
    let active = "systemctl --user is-active default.target";
    ann.sh(&format!(
        "for i in $(seq 1000); do {active} >/dev/null 2>&1 && exit; sleep 0.2; done; {active}"
    ));

    ann.configure(limited());
    ann.start("--systemd-cgroup", "scope");
    ann.sees_limits("scope", &format!("{own}/{SLICE}/runc-scope.scope"));
    let show = "systemctl --user show --value -p TasksMax,MemoryMax,ActiveState runc-scope.scope";
    assert_eq!(
        ann.sh(&format!("{show} | sort | xargs")),
        "20 67108864 active"
    );
    ann.sh("joey kill scope KILL; joey delete --force scope");
    ann.has_nothing();
    let units = "systemctl --user list-units --all --plain --no-legend '*.scope'";
    assert_eq!(ann.sh(&format!("{units} | cut -d ' ' -f 1")), "init.scope");

    ann.sh("systemctl --user exit");
    sh("for i in $(seq 1000); do pgrep -u ann || exit 0; sleep 0.1; done; exit 1");
    sh(&format!(
        "rm /tmp/systemd.log; rmdir /run/systemd/system; cd {CGROUPS}
        find {SLICE} -depth -type d -exec rmdir {{}} +"
    ));
}
