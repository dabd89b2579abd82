//! The row of a custom kind. Rows live as long as the process, like those of built-in kinds; one that was there already
//! is found again, so that a definition that comes and goes takes no memory each time.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionVersion,
};
use krate_api::{Gvk, Kind, Scope, Subresource, Verbs};
use parking_lot::Mutex;

static TEXTS: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());
static ROWS: Mutex<Vec<&'static Kind>> = Mutex::new(Vec::new());

/// A text that lives as long as the process.
pub fn text(wanted: &str) -> &'static str {
    let mut known = TEXTS.lock();
    match known.binary_search(&wanted) {
        Ok(at) => known[at],
        Err(at) => {
            let new: &'static str = String::leak(wanted.to_owned());
            known.insert(at, new);
            new
        }
    }
}

fn texts(wanted: Option<&Vec<String>>) -> Vec<&'static str> {
    wanted.into_iter().flatten().map(|word| text(word)).collect()
}

/// The row of a version of a definition, under the names that were accepted.
pub fn of(definition: &CustomResourceDefinition, version: &CustomResourceDefinitionVersion) -> &'static Kind {
    let spec = &definition.spec;
    let names = definition
        .status
        .as_ref()
        .and_then(|status| status.accepted_names.as_ref())
        .filter(|names| !names.plural.is_empty())
        .unwrap_or(&spec.names);
    let (group, version_name, kind) = (text(&spec.group), text(&version.name), text(&names.kind));
    let mut subresources = Vec::new();
    if let Some(wanted) = &version.subresources {
        if wanted.status.is_some() {
            let gvk = Gvk { group, version: version_name, kind };
            subresources.push(Subresource { name: "status", kind: gvk, verbs: Verbs::STATUS });
        }
        if wanted.scale.is_some() {
            let gvk = Gvk { group: "autoscaling", version: "v1", kind: "Scale" };
            subresources.push(Subresource { name: "scale", kind: gvk, verbs: Verbs::STATUS });
        }
    }
    let (short_names, categories) = (texts(names.short_names.as_ref()), texts(names.categories.as_ref()));
    let singular = names.singular.clone().unwrap_or_else(|| names.kind.to_lowercase());
    let wanted = Kind {
        group,
        version: version_name,
        kind,
        plural: text(&names.plural),
        singular: text(&singular),
        short_names: &[],
        categories: &[],
        scope: if spec.scope == "Cluster" { Scope::Cluster } else { Scope::Namespaced },
        verbs: Verbs::ALL,
        subresources: &[],
        storage: text(&format!("/registry/{}/{}", spec.group, names.plural)),
        custom: true,
    };
    let mut known = ROWS.lock();
    let is_the_same = |row: &Kind| {
        row.short_names == short_names
            && row.categories == categories
            && row.subresources == subresources
            && Kind { short_names: &[], categories: &[], subresources: &[], ..*row } == wanted
    };
    if let Some(there) = known.iter().find(|row| is_the_same(row)) {
        return there;
    }
    let new: &'static Kind = Box::leak(Box::new(Kind {
        short_names: short_names.leak(),
        categories: categories.leak(),
        subresources: subresources.leak(),
        ..wanted
    }));
    known.push(new);
    new
}

/// The row of a kind whose definition goes: discovery names no verbs by which an object could be made or changed.
pub fn closing(row: &'static Kind) -> &'static Kind {
    let verbs = row.verbs.without(Verbs::CREATE.and(Verbs::UPDATE).and(Verbs::PATCH));
    let wanted = Kind { verbs, ..*row };
    let mut known = ROWS.lock();
    if let Some(there) = known.iter().find(|there| ***there == wanted) {
        return there;
    }
    let new: &'static Kind = Box::leak(Box::new(wanted));
    known.push(new);
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_was_there_is_found_again() {
        let definition: CustomResourceDefinition = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "widgets.example.com"},
            "spec": {
                "group": "example.com", "scope": "Namespaced",
                "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "shortNames": ["wid"]},
                "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}}}],
            },
        }))
        .expect("a definition");
        let row = of(&definition, &definition.spec.versions[0]);
        assert_eq!(
            (row.kind, row.short_names, row.storage),
            ("Widget", &["wid"][..], "/registry/example.com/widgets")
        );
        assert_eq!(row.subresources.iter().map(|s| s.name).collect::<Vec<_>>(), ["status"]);
        assert!(std::ptr::eq(row, of(&definition, &definition.spec.versions[0])));
    }
}
