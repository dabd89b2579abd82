//! Lists: Kubernetes' own functions and those of CEL's lists extension.

use std::cmp::Ordering;

use crate::cel::operators::{apply, compare};
use crate::cel::value::Value;
use crate::cel::{Error, Result};

/// The longest list that a range makes.
const LONGEST: i64 = 1_000_000;

pub fn call(name: &str, args: &[Value]) -> Option<Result<Value>> {
    if let ("lists.range", [Value::Int(n)]) = (name, args) {
        return Some(if *n > LONGEST {
            Err(Error::new("list is too long"))
        } else {
            Ok(Value::list((0..*n).map(Value::Int).collect()))
        });
    }
    let Value::List(list) = args.first()? else { return None };
    Some(match (name, &args[1..]) {
        ("isSorted", []) => is_sorted(list),
        ("sum", []) => sum(list),
        ("min" | "max", []) => {
            extreme(list, if name == "min" { Ordering::Less } else { Ordering::Greater }, name)
        }
        ("indexOf", [item]) => Ok(position(list.iter().position(|v| v == item))),
        ("lastIndexOf", [item]) => Ok(position(list.iter().rposition(|v| v == item))),
        ("reverse", []) => Ok(Value::list(list.iter().rev().cloned().collect())),
        ("distinct", []) => {
            let mut seen: Vec<Value> = Vec::new();
            for item in list.iter().filter(|item| !seen.contains(item)).cloned().collect::<Vec<_>>() {
                if !seen.contains(&item) {
                    seen.push(item);
                }
            }
            Ok(Value::list(seen))
        }
        ("flatten", []) => Ok(Value::list(flatten(list, 1))),
        ("flatten", [Value::Int(depth)]) if *depth < 0 => Err(Error::new("level must be non-negative")),
        ("flatten", [Value::Int(depth)]) => Ok(Value::list(flatten(list, *depth))),
        ("slice", [Value::Int(from), Value::Int(to)]) => slice(list, *from, *to),
        ("sort", []) => sort(list),
        _ => return None,
    })
}

fn position(at: Option<usize>) -> Value {
    Value::Int(at.map_or(-1, |i| i as i64))
}

fn is_sorted(list: &[Value]) -> Result<Value> {
    for pair in list.windows(2) {
        if compare(&pair[0], &pair[1])? == Some(Ordering::Greater) {
            return Ok(Value::Bool(false));
        }
    }
    Ok(Value::Bool(true))
}

fn sum(list: &[Value]) -> Result<Value> {
    let Some(first) = list.first() else { return Ok(Value::Int(0)) };
    list[1..].iter().try_fold(first.clone(), |sum, item| {
        apply("_+_", &[sum, item.clone()]).unwrap_or_else(|| Err(Error::no_such_overload()))
    })
}

fn extreme(list: &[Value], wanted: Ordering, name: &str) -> Result<Value> {
    let mut best = list.first().ok_or_else(|| Error::new(format!("{name} called on empty list")))?;
    for item in &list[1..] {
        if compare(item, best)? == Some(wanted) {
            best = item;
        }
    }
    Ok(best.clone())
}

fn flatten(list: &[Value], depth: i64) -> Vec<Value> {
    list.iter()
        .flat_map(|item| match item {
            Value::List(inner) if depth > 0 => flatten(inner, depth - 1),
            other => vec![other.clone()],
        })
        .collect()
}

fn slice(list: &[Value], from: i64, to: i64) -> Result<Value> {
    if from < 0 || to < 0 {
        return Err(Error::new(format!("cannot slice({from}, {to}), negative indexes not supported")));
    }
    if from > to {
        return Err(Error::new(format!(
            "cannot slice({from}, {to}), start index must be less than or equal to end index"
        )));
    }
    let part = list.get(from as usize..to as usize);
    let part =
        part.ok_or_else(|| Error::new(format!("cannot slice({from}, {to}), list is length {}", list.len())))?;
    Ok(Value::list(part.to_vec()))
}

fn sort(list: &[Value]) -> Result<Value> {
    let mut sorted = list.to_vec();
    let mut fault = None;
    sorted.sort_by(|a, b| match compare(a, b) {
        Ok(order) => order.unwrap_or(Ordering::Equal),
        Err(error) => {
            fault = Some(error);
            Ordering::Equal
        }
    });
    fault.map_or_else(|| Ok(Value::list(sorted)), Err)
}
