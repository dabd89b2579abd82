//! When a CronJob runs: the five fields of cron, and the shorthands. What is wrong is said in the words of the parser
//! that upstream uses (robfig/cron).

/// Lowest and highest value, and the names that may stand for values.
struct Field {
    low: u32,
    high: u32,
    names: &'static [&'static str],
}

const FIELDS: [Field; 5] = [
    Field { low: 0, high: 59, names: &[] },
    Field { low: 0, high: 23, names: &[] },
    Field { low: 1, high: 31, names: &[] },
    Field {
        low: 1,
        high: 12,
        names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
    },
    Field { low: 0, high: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] },
];

/// Why a schedule is none.
pub fn check(schedule: &str) -> Result<(), String> {
    if schedule.is_empty() {
        return Err("empty spec string".to_owned());
    }
    if let Some(word) = schedule.strip_prefix('@') {
        return match word {
            "yearly" | "annually" | "monthly" | "weekly" | "daily" | "midnight" | "hourly" => Ok(()),
            _ => match word.strip_prefix("every ") {
                Some(duration) if is_duration(duration) => Ok(()),
                Some(duration) => {
                    Err(format!("failed to parse duration {schedule}: time: invalid duration \"{duration}\""))
                }
                None => Err(format!("unrecognized descriptor: {schedule}")),
            },
        };
    }
    let words: Vec<&str> = schedule.split_whitespace().collect();
    if words.len() != FIELDS.len() {
        return Err(format!(
            "expected exactly {} fields, found {}: [{}]",
            FIELDS.len(),
            words.len(),
            words.join(" ")
        ));
    }
    words
        .iter()
        .zip(&FIELDS)
        .try_for_each(|(word, field)| word.split(',').try_for_each(|part| range(part, field)))
}

/// `*`, `5`, `1-5`, `*/2`, `1-10/3`.
fn range(part: &str, field: &Field) -> Result<(), String> {
    let (span, step) = match part.split('/').collect::<Vec<_>>()[..] {
        [span] => (span, None),
        [span, step] => (span, Some(step)),
        _ => return Err(format!("too many slashes: {part}")),
    };
    let (low, high) = match span.split('-').collect::<Vec<_>>()[..] {
        ["*" | "?"] => (field.low, field.high),
        [one] => {
            let low = value(one, field)?;
            (low, if step.is_some() { field.high } else { low })
        }
        [low, high] => (value(low, field)?, value(high, field)?),
        _ => return Err(format!("too many hyphens: {part}")),
    };
    let step = step.map_or(Ok(1), number)?;
    if low < field.low {
        return Err(format!("beginning of range ({low}) below minimum ({}): {part}", field.low));
    }
    if high > field.high {
        return Err(format!("end of range ({high}) above maximum ({}): {part}", field.high));
    }
    if low > high {
        return Err(format!("beginning of range ({low}) beyond end of range ({high}): {part}"));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {part}"));
    }
    Ok(())
}

fn value(word: &str, field: &Field) -> Result<u32, String> {
    let lower = word.to_lowercase();
    match field.names.iter().position(|n| *n == lower) {
        Some(i) => Ok(field.low + i as u32),
        None => number(word),
    }
}

fn number(word: &str) -> Result<u32, String> {
    match word.parse::<i64>() {
        Err(_) => {
            Err(format!("failed to parse int from {word}: strconv.Atoi: parsing \"{word}\": invalid syntax"))
        }
        Ok(n) if n < 0 => Err(format!("negative number ({n}) not allowed: {word}")),
        Ok(n) => Ok(u32::try_from(n).unwrap_or(u32::MAX)),
    }
}

/// A duration as Go writes it: `1h30m`.
fn is_duration(text: &str) -> bool {
    let text = text.strip_prefix('-').unwrap_or(text);
    let mut rest = text;
    if rest.is_empty() {
        return false;
    }
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
        let (number, tail) = rest.split_at(digits);
        let Some(unit) = ["ns", "us", "µs", "ms", "s", "m", "h"].iter().find(|u| tail.starts_with(**u))
        else {
            return false;
        };
        if number.parse::<f64>().is_err() {
            return false;
        }
        rest = &tail[unit.len()..];
        // `ms` begins with `m`: the longer one is meant where it fits.
        if *unit == "m" && rest.starts_with('s') {
            rest = &rest[1..];
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn schedules_are_read_as_cron_reads_them() {
        for good in [
            "* * * * *",
            "*/5 0-23/2 1,15 jan-jun MON",
            "@every 1h30m",
            "@hourly",
            "0 0 ? * 0",
            "5/15 * * * *",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("", "empty spec string"),
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("61 * * * *", "end of range (61) above maximum (59): 61"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("5-3 * * * *", "beginning of range (5) beyond end of range (3): 5-3"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("@often", "unrecognized descriptor: @often"),
        ] {
            assert_eq!(check(bad).expect_err(bad), why);
        }
        assert!(check("x * * * *").is_err());
        assert!(check("@every soon").is_err());
    }
}
