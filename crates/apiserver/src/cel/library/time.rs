//! The parts of times and durations.

use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp, Zoned};

use crate::cel::value::Value;
use crate::cel::{Error, Result};

pub fn call(name: &str, args: &[Value]) -> Option<Result<Value>> {
    match args {
        [Value::Timestamp(t)] => of_time(name, *t, "UTC"),
        [Value::Timestamp(t), Value::String(zone)] => of_time(name, *t, zone),
        [Value::Duration(d)] => of_duration(name, *d),
        _ => None,
    }
}

/// `UTC`, a name of the time zone database, or `-08:00`.
fn zone(name: &str) -> Option<TimeZone> {
    if matches!(name, "" | "UTC" | "Z") {
        return Some(TimeZone::UTC);
    }
    if let Some((hours, minutes)) = name.split_once(':') {
        let negative = hours.starts_with('-');
        let hours: i32 = hours.trim_start_matches(['+', '-']).parse().ok()?;
        let minutes: i32 = minutes.parse().ok()?;
        let seconds = (hours * 60 + minutes) * 60;
        return Offset::from_seconds(if negative { -seconds } else { seconds }).ok().map(TimeZone::fixed);
    }
    TimeZone::get(name).ok()
}

fn of_time(name: &str, t: Timestamp, zone_name: &str) -> Option<Result<Value>> {
    let part: fn(&Zoned) -> i64 = match name {
        "getFullYear" => |z| i64::from(z.year()),
        "getMonth" => |z| i64::from(z.month()) - 1,
        "getDate" => |z| i64::from(z.day()),
        "getDayOfMonth" => |z| i64::from(z.day()) - 1,
        "getDayOfWeek" => |z| i64::from(z.weekday().to_sunday_zero_offset()),
        "getDayOfYear" => |z| i64::from(z.day_of_year()) - 1,
        "getHours" => |z| i64::from(z.hour()),
        "getMinutes" => |z| i64::from(z.minute()),
        "getSeconds" => |z| i64::from(z.second()),
        "getMilliseconds" => |z| i64::from(z.millisecond()),
        _ => return None,
    };
    let Some(zone) = zone(zone_name) else {
        return Some(Err(Error::new(format!("unknown time zone {zone_name}"))));
    };
    Some(Ok(Value::Int(part(&t.to_zoned(zone)))))
}

fn of_duration(name: &str, d: SignedDuration) -> Option<Result<Value>> {
    Some(Ok(Value::Int(match name {
        "getHours" => d.as_hours(),
        "getMinutes" => d.as_mins(),
        "getSeconds" => d.as_secs(),
        "getMilliseconds" => i64::from(d.subsec_millis()),
        _ => return None,
    })))
}
