//! The shape of JSON text, checked before it is parsed: parsed values take many times the memory of
//! their text, and the parser does not limit members that it skips.

/// The shape of a text, if it is JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct JsonShape {
    /// The nesting depth of brackets.
    pub(crate) depth: usize,
    /// An upper bound of the number of values.
    pub(crate) values: usize,
}

impl JsonShape {
    /// Measures a text in one pass.
    pub(crate) fn of(json: &[u8]) -> Self {
        let (mut open, mut shape) = (0_usize, Self { depth: 0, values: 1 });
        let (mut in_string, mut escaped) = (false, false);
        for byte in json {
            if in_string {
                match byte {
                    _ if escaped => escaped = false,
                    b'\\' => escaped = true,
                    b'"' => in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => in_string = true,
                b'{' | b'[' => {
                    open += 1;
                    shape.depth = shape.depth.max(open);
                    shape.values += 1;
                }
                b'}' | b']' => open = open.saturating_sub(1),
                b',' => shape.values += 1,
                _ => {}
            }
        }
        shape
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn count(value: &Value) -> usize {
        match value {
            Value::Array(values) => 1 + values.iter().map(count).sum::<usize>(),
            Value::Object(members) => 1 + members.values().map(count).sum::<usize>(),
            _ => 1,
        }
    }

    fn depth(value: &Value) -> usize {
        match value {
            Value::Array(values) => 1 + values.iter().map(depth).max().unwrap_or_default(),
            Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or_default(),
            _ => 0,
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<i32>().prop_map(Value::from),
            "[\\[\\]{},\"\\\\a]{0,6}".prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::vec(("[\\[{,\"\\\\]{0,3}", inner), 0..5)
                    .prop_map(|members| members.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_value_is_counted(value in value()) {
            let shape = JsonShape::of(value.to_string().as_bytes());
            prop_assert_eq!(shape.depth, depth(&value));
            prop_assert!(shape.values >= count(&value) && shape.values <= 2 * count(&value));
        }
    }

    #[test]
    fn empty_values_count() {
        let text = json!({ "a": [{}, {}, {}] }).to_string();
        assert_eq!(JsonShape::of(text.as_bytes()), JsonShape { depth: 3, values: 8 });
        assert_eq!(JsonShape::of(b""), JsonShape { depth: 0, values: 1 });
    }
}
