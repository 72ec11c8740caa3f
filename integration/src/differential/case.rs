//! One spec and what is done with it, as data.

use serde_json::{Value, json};

/// What is done to the base spec.
#[derive(Debug, Clone)]
enum Patch {
    /// As RFC 7396 has it: objects are merged, null removes, all else replaces.
    Merge(Value),
    /// Appended to the list at a JSON pointer.
    Push(&'static str, Value),
    /// Entries of the list at a pointer of which a member has a value are taken out.
    Drop(&'static str, &'static str, &'static str),
}

/// One thing that is done, whose outcome is compared.
///
/// In every text `{id}`, `{dir}`, `{bundle}`, `{rootfs}`, `{state}`, `{runtime}` and `{cgroup}` (the
/// cgroup that the spec names, as a directory) stand for what they say.
#[derive(Debug, Clone)]
pub enum Step {
    /// The verb `create` with more options. The case ends where it fails.
    Create(Vec<&'static str>),
    /// Any verb, with all its words but the runtime's global ones.
    Call(Vec<&'static str>),
    /// As [`Step::Call`]; of JSON that it prints only the names and types are compared.
    Shape(Vec<&'static str>),
    /// The end of the container's first process, and what it wrote.
    Wait,
    /// The container's first process seen from the host.
    Look,
    /// A shell command on the host whose output and exit code are compared.
    Shell(&'static str),
    /// A shell command on the host that is repeated until it succeeds.
    Until(&'static str),
}

/// One case of the corpus.
#[derive(Debug, Clone)]
pub struct Case {
    /// Area and name.
    pub name: &'static str,
    patches: Vec<Patch>,
    document: Option<&'static str>,
    /// A shell command on the host before everything.
    pub prepare: &'static str,
    /// A shell command on the host after everything, which takes back `prepare`.
    pub tidy: &'static str,
    /// Words (in lower case) of which a message of failure must have one, so that it leads to
    /// the field. Empty where no failure is meant.
    pub says: &'static [&'static str],
    /// What is done.
    pub steps: Vec<Step>,
    /// Whether the process gets a terminal through a console socket.
    pub terminal: bool,
    /// Environment of the runtime itself.
    pub environment: Vec<(&'static str, &'static str)>,
    /// How many more descriptors the runtime has, from 3 on.
    pub descriptors: u32,
}

/// A case whose process is the probe, run from create to delete.
pub fn case(name: &'static str) -> Case {
    Case {
        name,
        patches: Vec::new(),
        document: None,
        prepare: "",
        tidy: "",
        says: &[],
        steps: vec![
            Step::Create(Vec::new()),
            Step::Look,
            Step::Call(vec!["start", "{id}"]),
            Step::Wait,
            Step::Call(vec!["state", "{id}"]),
            Step::Call(vec!["delete", "{id}"]),
        ],
        terminal: false,
        environment: Vec::new(),
        descriptors: 0,
    }
}

impl Case {
    /// Merges a JSON merge patch into the spec.
    pub fn merge(mut self, patch: Value) -> Self {
        self.patches.push(Patch::Merge(patch));
        self
    }

    /// Merges into the spec's `process`.
    pub fn process(self, patch: Value) -> Self {
        self.merge(json!({ "process": patch }))
    }

    /// Merges into the spec's `linux`.
    pub fn linux(self, patch: Value) -> Self {
        self.merge(json!({ "linux": patch }))
    }

    /// Merges into `linux.resources`.
    pub fn resources(self, patch: Value) -> Self {
        self.linux(json!({ "resources": patch }))
    }

    /// Adds a mount after the base spec's.
    pub fn mount(self, mount: Value) -> Self {
        self.push("/mounts", mount)
    }

    /// Adds a namespace.
    pub fn namespace(self, namespace: Value) -> Self {
        self.push("/linux/namespaces", namespace)
    }

    /// Takes the namespace of a type out of the spec.
    pub fn without_namespace(mut self, kind: &'static str) -> Self {
        self.patches
            .push(Patch::Drop("/linux/namespaces", "type", kind));
        self
    }

    /// Appends to a list of the spec.
    pub fn push(mut self, pointer: &'static str, value: Value) -> Self {
        self.patches.push(Patch::Push(pointer, value));
        self
    }

    /// Takes the mount at a destination out of the spec.
    pub fn without_mount(mut self, destination: &'static str) -> Self {
        self.patches
            .push(Patch::Drop("/mounts", "destination", destination));
        self
    }

    /// Lets the process be a shell that runs `script`.
    pub fn script(self, script: &str) -> Self {
        self.process(json!({ "args": ["/bin/sh", "-c", script] }))
    }

    /// Has this text as config.json.
    pub fn document(mut self, text: &'static str) -> Self {
        self.document = Some(text);
        self
    }

    /// What is made on the host before, and how it is taken back.
    pub fn host(mut self, prepare: &'static str, tidy: &'static str) -> Self {
        (self.prepare, self.tidy) = (prepare, tidy);
        self
    }

    /// What a message of failure must name.
    pub fn says(mut self, words: &'static [&'static str]) -> Self {
        self.says = words;
        self
    }

    /// Does this in place of the usual life.
    pub fn steps(mut self, steps: Vec<Step>) -> Self {
        self.steps = steps;
        self
    }

    /// Gives the process a terminal.
    pub fn with_terminal(mut self) -> Self {
        self.terminal = true;
        self.process(json!({ "terminal": true }))
    }

    /// Sets a variable of the runtime itself.
    pub fn variable(mut self, name: &'static str, value: &'static str) -> Self {
        self.environment.push((name, value));
        self
    }

    /// Gives the runtime more descriptors.
    pub fn descriptors(mut self, count: u32) -> Self {
        self.descriptors = count;
        self
    }

    /// The text of config.json, with its placeholders.
    ///
    /// # Panics
    /// When a patch names no list of the spec: the corpus is wrong then.
    pub fn config(&self, base: Value) -> String {
        if let Some(text) = self.document {
            return text.to_owned();
        }
        let mut spec = base;
        for patch in &self.patches {
            match patch {
                Patch::Merge(patch) => merge(&mut spec, patch),
                Patch::Push(pointer, value) => {
                    list(&mut spec, pointer, self.name).push(value.clone());
                }
                Patch::Drop(pointer, member, value) => {
                    list(&mut spec, pointer, self.name).retain(|entry| entry[*member] != *value);
                }
            }
        }
        spec.to_string()
    }
}

fn list<'a>(spec: &'a mut Value, pointer: &str, name: &str) -> &'a mut Vec<Value> {
    spec.pointer_mut(pointer)
        .and_then(Value::as_array_mut)
        .unwrap_or_else(|| panic!("{name}: the spec has no list {pointer}"))
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(members) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Value::Object(object) = target else {
        return;
    };
    for (name, value) in members {
        if value.is_null() {
            object.remove(name);
        } else {
            merge(object.entry(name).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_are_taken_in_their_order() {
        let base = json!({
            "process": {"cwd": "/", "args": ["/probe"]},
            "linux": {"namespaces": [{"type": "pid"}, {"type": "uts"}]},
        });
        let case = case("x/y")
            .process(json!({"cwd": null, "umask": 18}))
            .without_namespace("pid")
            .namespace(json!({"type": "user"}));
        let spec: Value = serde_json::from_str(&case.config(base)).unwrap();
        assert_eq!(
            spec,
            json!({
                "process": {"args": ["/probe"], "umask": 18},
                "linux": {"namespaces": [{"type": "uts"}, {"type": "user"}]},
            })
        );
    }

    #[test]
    fn a_document_stands_for_itself() {
        assert_eq!(case("x/y").document("{").config(json!({})), "{");
    }
}
