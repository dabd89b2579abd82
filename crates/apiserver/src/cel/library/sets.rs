//! Lists as sets.

use crate::cel::Result;
use crate::cel::value::Value;

pub fn call(name: &str, args: &[Value]) -> Option<Result<Value>> {
    let [Value::List(a), Value::List(b)] = args else { return None };
    let all_in = |part: &[Value], whole: &[Value]| part.iter().all(|item| whole.contains(item));
    Some(Ok(Value::Bool(match name {
        "sets.contains" => all_in(b, a),
        "sets.equivalent" => all_in(a, b) && all_in(b, a),
        "sets.intersects" => a.iter().any(|item| b.contains(item)),
        _ => return None,
    })))
}
