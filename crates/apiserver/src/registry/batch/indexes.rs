//! The indexes of an Indexed Job in short: `1,3-5,7`.

/// How many indexes a text names, each below `completions`.
///
/// # Errors
/// Why it is no list of indexes.
pub fn count(text: &str, completions: i32) -> Result<i32, String> {
    if text.is_empty() {
        return Ok(0);
    }
    let mut last: Option<i32> = None;
    let mut total = 0;
    for part in text.split(',') {
        let (first, end) = interval(part, completions)?;
        if let Some(last) = last.filter(|last| *last >= first) {
            return Err(format!("non-increasing order, previous: {last}, current: {first}"));
        }
        total += end - first + 1;
        last = Some(end);
    }
    Ok(total)
}

/// The first index that two lists have in common. Parts that cannot be read are passed over.
pub fn overlap(one: &str, other: &str, completions: i32) -> Option<i32> {
    let read = |text: &str| -> Vec<(i32, i32)> {
        text.split(',').filter_map(|part| interval(part, completions).ok()).collect()
    };
    let (one, other) = (read(one), read(other));
    let (mut i, mut j) = (0, 0);
    while let (Some((a, b)), Some((c, d))) = (one.get(i), other.get(j)) {
        if a <= d && c <= b {
            return Some(*a.max(c));
        }
        if a <= c { i += 1 } else { j += 1 }
    }
    None
}

fn interval(text: &str, completions: i32) -> Result<(i32, i32), String> {
    let index = |part: &str| -> Result<i32, String> {
        let index: i64 =
            part.parse().map_err(|_| format!("cannot convert string to integer for index: {part:?}"))?;
        if index >= i64::from(completions) {
            return Err(format!("too large index: {part:?}"));
        }
        Ok(index as i32)
    };
    match text.split('-').collect::<Vec<_>>()[..] {
        [only] => index(only).map(|x| (x, x)),
        [first, last] => {
            let (x, y) = (index(first)?, index(last)?);
            if x >= y {
                return Err(format!("non-increasing order, previous: {x}, current: {y}"));
            }
            Ok((x, y))
        }
        _ => Err(format!(
            "the fragment {text:?} violates the requirement that an index interval can have at most two parts \
             separated by '-'"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_counted_in_order() {
        for (text, wanted) in [
            ("", Ok(0)),
            ("1,3-5,7", Ok(5)),
            ("0-9", Err("too large index: \"9\"")),
            ("3,1", Err("non-increasing order, previous: 3, current: 1")),
            ("3-1", Err("non-increasing order, previous: 3, current: 1")),
            ("x", Err("cannot convert string to integer for index: \"x\"")),
        ] {
            assert_eq!(count(text, 9), wanted.map_err(str::to_owned), "{text}");
        }
        assert!(count("1-2-3", 9).is_err_and(|why| why.contains("at most two parts")));
    }

    #[test]
    fn what_two_lists_share_is_found() {
        assert_eq!(overlap("0-2,6", "3-5,6-7", 9), Some(6));
        assert_eq!(overlap("0-2,x", "3-5", 9), None);
        assert_eq!(overlap("", "3-5", 9), None);
    }
}
