//! Sets of processors, as the kernel writes them: `0-2,5`.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct CpuSet(pub BTreeSet<u32>);

impl CpuSet {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn without(&self, other: &Self) -> Self {
        CpuSet(self.0.difference(&other.0).copied().collect())
    }

    pub fn with(&self, other: &Self) -> Self {
        CpuSet(self.0.union(&other.0).copied().collect())
    }

    pub fn and(&self, other: &Self) -> Self {
        CpuSet(self.0.intersection(&other.0).copied().collect())
    }
}

impl FromIterator<u32> for CpuSet {
    fn from_iter<I: IntoIterator<Item = u32>>(all: I) -> Self {
        CpuSet(all.into_iter().collect())
    }
}

impl FromStr for CpuSet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<u32>().map_err(|_| format!("invalid processor {text:?}"));
        let mut all = BTreeSet::new();
        for part in text.trim().split(',').filter(|part| !part.is_empty()) {
            match part.split_once('-') {
                Some((first, last)) => {
                    let (first, last) = (number(first)?, number(last)?);
                    if first > last {
                        return Err(format!("invalid range {part:?} ({first} > {last})"));
                    }
                    all.extend(first..=last);
                }
                None => drop(all.insert(number(part)?)),
            }
        }
        Ok(CpuSet(all))
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for &cpu in &self.0 {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == cpu => *last = cpu,
                _ => ranges.push((cpu, cpu)),
            }
        }
        let text = |(first, last): &(u32, u32)| {
            if first == last { first.to_string() } else { format!("{first}-{last}") }
        };
        f.write_str(&ranges.iter().map(text).collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_written_as_the_kernel_does() {
        for (text, written) in
            [("0-2,5", "0-2,5"), ("5,0,1,2", "0-2,5"), ("3", "3"), ("", ""), ("1,2", "1-2")]
        {
            assert_eq!(text.parse::<CpuSet>().unwrap().to_string(), written, "{text}");
        }
        for text in ["a", "2-1", "1-", "-"] {
            assert!(text.parse::<CpuSet>().is_err(), "{text}");
        }
    }
}
