//! Where two observations differ.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Members of this name are kept for people and not compared: texts of errors.
pub const SAID: &str = "said";
/// Whether a message of failure leads to the field. joey's may where runc's does not.
pub const NAMES: &str = "names the field";

/// One place in which two observations differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The way to it.
    pub at: String,
    /// What runc has there; null where it has nothing.
    pub runc: Value,
    /// What joey has there.
    pub joey: Value,
}

/// Every place in which two observations differ.
pub fn differences(runc: &Value, joey: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    walk("", runc, joey, &mut found);
    found
}

fn walk(at: &str, runc: &Value, joey: &Value, found: &mut Vec<Difference>) {
    match (runc, joey) {
        (Value::Object(left), Value::Object(right)) => {
            let names: BTreeSet<_> = left.keys().chain(right.keys()).collect();
            let better = |name: &str| name == NAMES && right.get(name) == Some(&Value::Bool(true));
            for name in names
                .into_iter()
                .filter(|name| *name != SAID && !better(name))
            {
                walk(
                    &format!("{at}/{name}"),
                    left.get(name).unwrap_or(&Value::Null),
                    right.get(name).unwrap_or(&Value::Null),
                    found,
                );
            }
        }
        // Those of unlike length say more as a whole.
        (Value::Array(left), Value::Array(right)) if left.len() == right.len() => {
            for (number, (runc, joey)) in left.iter().zip(right).enumerate() {
                walk(&format!("{at}/{number}"), runc, joey, found);
            }
        }
        _ if runc == joey => {}
        _ => found.push(Difference {
            at: at.to_owned(),
            runc: runc.clone(),
            joey: joey.clone(),
        }),
    }
}

/// A JSON value with the names of its types in place of its values: what two outputs have in
/// common whose numbers are of the moment.
pub fn shape(value: &Value) -> Value {
    match value {
        Value::Object(members) => members
            .iter()
            .map(|(name, value)| (name.clone(), shape(value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        Value::Array(values) => {
            let kinds: BTreeSet<String> = values.iter().map(|v| shape(v).to_string()).collect();
            kinds.into_iter().map(Value::from).collect()
        }
        Value::Null => "null".into(),
        Value::Bool(_) => "bool".into(),
        Value::Number(_) => "number".into(),
        Value::String(_) => "string".into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn differences_name_their_place() {
        let runc = json!({"a": {"b": 1, "c": [1, 2]}, "d": [1], "said": "x"});
        let joey = json!({"a": {"b": 1, "c": [1, 3]}, "d": [], "said": "y", "e": true});
        let found: Vec<_> = differences(&runc, &joey)
            .into_iter()
            .map(|found| (found.at, found.runc, found.joey))
            .collect();
        assert_eq!(
            found,
            [
                ("/a/c/1".into(), json!(2), json!(3)),
                ("/d".into(), json!([1]), json!([])),
                ("/e".into(), json!(null), json!(true)),
            ]
        );
    }

    #[test]
    fn a_message_may_say_more_than_runcs() {
        let [vague, clear] = [false, true].map(|names| json!({"names the field": names}));
        assert!(differences(&vague, &clear).is_empty());
        assert_eq!(differences(&clear, &vague).len(), 1);
    }

    #[test]
    fn what_is_equal_has_none() {
        let value = json!({"a": [1, {"b": null}]});
        assert!(differences(&value, &value).is_empty());
    }

    #[test]
    fn a_shape_has_no_values() {
        let shape = shape(&json!({"a": 1, "b": ["x", "y"], "c": {"d": true}}));
        assert_eq!(
            shape,
            json!({"a": "number", "b": ["\"string\""], "c": {"d": "bool"}})
        );
    }
}
