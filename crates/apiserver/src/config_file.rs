//! Configuration that stands in files, in YAML or JSON, read strictly as upstream reads it: a field that nobody knows is
//! an error, and so is one that stands there twice.

use serde::de::DeserializeOwned;
use serde_ignored::Path;

use crate::yaml;

/// Reads an object of this kind in one of these versions. The error is upstream's.
///
/// # Errors
/// It is no YAML, of another kind or version, or has what such an object has not.
pub fn read<T: DeserializeOwned>(text: &[u8], versions: &[&str], kind: &str) -> Result<T, String> {
    let (object, unknown) = read_lenient(text, versions, kind)?;
    if unknown.is_empty() { Ok(object) } else { Err(strict(&unknown)) }
}

/// As [`read`], and beside the object the fields that nobody knows.
///
/// # Errors
/// As of [`read`], but for those.
pub fn read_lenient<T: DeserializeOwned>(
    text: &[u8],
    versions: &[&str],
    kind: &str,
) -> Result<(T, Vec<String>), String> {
    let mut value = yaml::to_json(text)?;
    let of = |field: &str| value.get(field).and_then(serde_json::Value::as_str).unwrap_or_default();
    let shown = || String::from_utf8_lossy(text).into_owned();
    if of("kind").is_empty() {
        return Err(format!("Object 'Kind' is missing in '{}'", shown()));
    }
    if of("apiVersion").is_empty() {
        return Err(format!("Object 'apiVersion' is missing in '{}'", shown()));
    }
    if of("kind") != kind || !versions.contains(&of("apiVersion")) {
        return Err(format!("no kind \"{}\" is registered for version \"{}\"", of("kind"), of("apiVersion")));
    }
    // They have done their work, and are no fields of what they name.
    if let Some(object) = value.as_object_mut() {
        object.remove("apiVersion");
        object.remove("kind");
    }
    let mut unknown = Vec::new();
    let object = serde_ignored::deserialize(value, |path| {
        unknown.push(format!("unknown field \"{}\"", field(&path)));
    });
    Ok((object.map_err(|error| error.to_string())?, unknown))
}

/// The fields that nobody knows, as one error.
pub fn strict(unknown: &[String]) -> String {
    format!("strict decoding error: {}", unknown.join(", "))
}

/// `resources[0].providers`.
fn field(path: &Path<'_>) -> String {
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", field(parent)),
        Path::Map { parent, key } => match field(parent) {
            parent if parent.is_empty() => key.clone(),
            parent => format!("{parent}.{key}"),
        },
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            field(parent)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Some {
        parts: Vec<Part>,
    }

    #[derive(Debug, Deserialize)]
    struct Part {
        name: Option<String>,
    }

    #[test]
    fn files_are_read_strictly() {
        let read = |text: &str| read::<Some>(text.as_bytes(), &["a/v1"], "Some");
        let good = read("apiVersion: a/v1\nkind: Some\nparts:\n- name: x\n").expect("it is good");
        assert_eq!(good.parts[0].name.as_deref(), Some("x"));
        for (text, expected) in [
            ("kind: Some", "Object 'apiVersion' is missing in 'kind: Some'"),
            ("apiVersion: a/v1", "Object 'Kind' is missing in 'apiVersion: a/v1'"),
            ("{apiVersion: a/v2, kind: Some}", "no kind \"Some\" is registered for version \"a/v2\""),
            (
                "{apiVersion: a/v1, kind: Some, parts: [{name: x, size: 1}], more: 2}",
                "strict decoding error: unknown field \"more\", unknown field \"parts[0].size\"",
            ),
        ] {
            assert_eq!(read(text).expect_err("refused"), expected);
        }
    }
}
