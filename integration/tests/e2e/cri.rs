//! Pods and containers as crictl sees them, removed again when dropped.

use std::sync::atomic::{AtomicU32, Ordering};

use integration::combination::Combination;
use integration::testbed::{Output, TestHost};
use serde_json::{Value, json};

/// The image most tests run.
pub const BUSYBOX: &str = "127.0.0.1:5000/busybox:latest";
/// About 100 MB in several layers with everything an image can hold.
pub const DEBIAN: &str = "127.0.0.1:5000/debian:latest";

/// A script that prints 100 MB of which each piece tells its place, cheaply where
/// processors are emulated: no line of it is made anew.
pub const HUNDRED_MB: &str = "{ seq 200000 | head -c 1048571 > /tmp/piece; \
    for i in $(seq -w 100); do echo $i; cat /tmp/piece; done; rm /tmp/piece; }";

static NEXT: AtomicU32 = AtomicU32::new(1);

/// The runtime handler of this run.
pub fn handler() -> &'static str {
    Combination::of_this_run().handler
}

/// Boots the test host with joey in it and pulls the image that most tests run.
pub fn prepare() {
    // Ten pods at once come too late otherwise for some who wait.
    TestHost::shared()
        .lengthen_slices()
        .unwrap_or_else(|error| panic!("{error}"));
    sh(&format!("crictl pull {BUSYBOX}"));
    // The first pod of a host makes what all later ones share: the CNI's bridge,
    // the parent cgroup, the formatted scratch.
    for handler in ["runc", handler()] {
        drop(Pod::with(handler, json!({})));
    }
    if Combination::of_this_run().has_vm() {
        // The first pod has it made, unless it is too short.
        sh("joeyctl template build");
    }
}

/// Runs a script, whatever comes of it.
pub fn run(script: &str) -> Output {
    TestHost::shared()
        .run(script)
        .unwrap_or_else(|error| panic!("{error}"))
}

/// Runs a script that must succeed and returns what it printed, trimmed.
pub fn sh(script: &str) -> String {
    let printed = TestHost::shared()
        .check(script)
        .unwrap_or_else(|error| panic!("{error}"));
    printed.trim().to_owned()
}

/// Runs a script that must fail and returns everything it printed.
pub fn fails(script: &str) -> String {
    let output = run(script);
    assert!(
        output.status != 0,
        "{script}: expected a failure\n{}",
        text(&output.stdout)
    );
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

/// Output of a command as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A word as a shell takes it, whatever is in it.
pub fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A sandbox; `rmp -f` when dropped.
pub struct Pod {
    pub id: String,
    config: String,
}

/// A container of a [`Pod`]; removed with it.
pub struct Container {
    pub id: String,
}

impl Pod {
    /// Runs a pod with joey's handler.
    pub fn run() -> Pod {
        Pod::with(handler(), json!({}))
    }

    /// Runs a pod with this handler; `extra` is merged into the sandbox's config.
    pub fn with(handler: &str, extra: Value) -> Pod {
        let config = Pod::write_config(extra);
        // What a guest said last is the best that a failure leaves.
        let id = sh(&format!(
            "crictl runp --runtime {handler} {config} || {{ tail -n 30 /var/lib/joey/dead/* >&2; exit 1; }}"
        ));
        Pod { id, config }
    }

    /// Writes a sandbox config of its own name into the host and returns its path.
    pub fn write_config(extra: Value) -> String {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut config = json!({
            "metadata": {"name": format!("pod{n}"), "uid": format!("uid{n}"), "namespace": "test", "attempt": 0},
            "hostname": format!("pod{n}"),
            "log_directory": format!("/tmp/logs/{n}"),
            "linux": {}
        });
        merge(&mut config, extra);
        let path = format!("/tmp/pod{n}.json");
        write(&path, &config);
        path
    }

    /// Creates and starts a container running `command`.
    pub fn start(&self, image: &str, command: &[&str]) -> Container {
        let container = self.create(image, json!({"command": command}));
        sh(&format!("crictl start {}", container.id));
        container
    }

    /// Creates a container; `extra` is merged into its config.
    pub fn create(&self, image: &str, extra: Value) -> Container {
        let path = container_config(image, extra);
        let id = sh(&format!("crictl create {} {path} {}", self.id, self.config));
        Container { id }
    }

    /// The path in the host of the config that it was made from.
    pub fn config(&self) -> &str {
        &self.config
    }

    /// `crictl inspectp` as JSON.
    pub fn inspect(&self) -> Value {
        parse(&sh(&format!("crictl inspectp -o json {}", self.id)))
    }

    /// The pod's first address and its further ones.
    pub fn addresses(&self) -> Vec<String> {
        let network = &self.inspect()["status"]["network"];
        let mut all = vec![network["ip"].as_str().unwrap_or_default().to_owned()];
        for more in network["additionalIps"].as_array().into_iter().flatten() {
            all.push(more["ip"].as_str().unwrap_or_default().to_owned());
        }
        all
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let remove = || {
            run(&format!(
                "crictl rmp -f {} && rm -f {}",
                self.id, self.config
            ))
        };
        let mut output = remove();
        // containerd closes a container's connection while it deletes its task: who kills it at
        // that moment has to ask again, as kubelet does.
        if text(&output.stderr).contains("ttrpc: closed") {
            output = remove();
        }
        // A second panic would hide the first one's message.
        if !std::thread::panicking() {
            assert!(
                output.status == 0,
                "rmp -f {}: {}",
                self.id,
                text(&output.stderr)
            );
        }
    }
}

impl Container {
    /// `crictl exec` of a shell script; must succeed; its stdout, trimmed.
    pub fn sh(&self, script: &str) -> String {
        sh(&format!("crictl exec {} sh -c {}", self.id, quote(script)))
    }

    /// `crictl exec` with these arguments, whatever comes of it.
    pub fn exec(&self, arguments: &[&str]) -> Output {
        let words: Vec<String> = arguments.iter().map(|word| quote(word)).collect();
        run(&format!("crictl exec {} {}", self.id, words.join(" ")))
    }

    /// `crictl inspect` as JSON.
    pub fn inspect(&self) -> Value {
        parse(&sh(&format!("crictl inspect -o json {}", self.id)))
    }

    /// Waits until what the container counts in its file `/count` is more than now.
    pub fn counts_on(&self) {
        sh(&format!(
            "count() {{ crictl exec {} cat /count; }}
            until first=$(count) || exit 1; [ \"$first\" ]; do sleep 0.2; done
            until [ \"$(count)\" -gt $first ]; do sleep 0.2; done",
            self.id
        ));
    }

    /// Waits until the container has exited; its exit code.
    pub fn wait(&self) -> i64 {
        sh(&format!(
            "for i in $(seq 600); do [ $(crictl inspect -o json {0} | jq -r .status.state) = CONTAINER_EXITED ] && exit 0; sleep 0.2; done; exit 1",
            self.id
        ));
        self.inspect()["status"]["exitCode"]
            .as_i64()
            .expect("exit code")
    }
}

/// Writes a container's config into the host and returns its path.
fn container_config(image: &str, extra: Value) -> String {
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut config = json!({
        "metadata": {"name": format!("c{n}"), "attempt": 0},
        "image": {"image": image},
        "log_path": format!("{n}.log"),
        "linux": {}
    });
    merge(&mut config, extra);
    let path = format!("/tmp/container{n}.json");
    write(&path, &config);
    path
}

/// Writes JSON to a file of the host.
pub fn write(path: &str, config: &Value) {
    sh(&format!(
        "printf %s {} > {path}",
        quote(&config.to_string())
    ));
}

/// JSON that a command has printed.
pub fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("not JSON: {error}\n{text}"))
}

/// Changes the fields that `from` has; lists as a whole.
pub fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}
