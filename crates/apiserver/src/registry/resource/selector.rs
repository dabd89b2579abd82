//! Which devices are meant: expressions over one device, in CEL.

use std::sync::LazyLock;

use k8s_openapi::api::resource::v1::{CELDeviceSelector, DeviceSelector};
use krate_api::{FieldErrors, FieldPath};

use super::lists::all;
use crate::cel::estimate::{Decl, Shape};
use crate::cel::signatures::QUANTITY;
use crate::cel::{Declared, Program, Type};

const MOST: usize = 32;
/// The longest expression, in bytes.
const LONGEST: usize = 10 * 1024;
const MOST_EXPENSIVE: u64 = 1_000_000;
/// Estimates from here on come of a size that nobody declared. Upstream knows the sizes of more values than we do, so
/// that nothing is refused for these.
const UNKNOWN: u64 = u64::MAX >> 16;
/// The most attributes, or capacities, of a device.
const ENTRIES: u64 = 32;

static DEVICE: LazyLock<Decl> = LazyLock::new(|| {
    let decl = |shape: Shape, most: u64| Decl { shape, most, least: 2 };
    let by_domain = |of: Decl| {
        let in_domain = decl(Shape::Map(Box::new(of)), ENTRIES);
        decl(Shape::Map(Box::new(in_domain)), ENTRIES)
    };
    let fields = [
        ("driver", decl(Shape::Simple(Type::String), 63)),
        ("allowMultipleAllocations", decl(Shape::Simple(Type::Bool), 1)),
        ("attributes", by_domain(decl(Shape::Simple(Type::Any), 64))),
        ("capacity", by_domain(decl(Shape::Simple(Type::object(QUANTITY, [])), 0))),
    ];
    decl(Shape::Object(fields.map(|(name, decl)| (name.to_owned(), decl)).into()), 0)
});

static DECLARED: LazyLock<Declared> =
    LazyLock::new(|| Declared::default().with("device", Type::of(&DEVICE, "kubernetes.DRADevice")));

pub fn selectors(list: Option<&[DeviceSelector]>, at: &FieldPath, errors: &mut FieldErrors) {
    all(list, MOST, at, errors, |selector, at, errors| {
        let at = at.child("cel");
        match &selector.cel {
            None => errors.required(&at, ""),
            Some(cel) => expression(cel, &at.child("expression"), errors),
        }
    });
}

fn expression(cel: &CELDeviceSelector, at: &FieldPath, errors: &mut FieldErrors) {
    let source = cel.expression.as_str();
    if source.len() > LONGEST {
        errors.too_long(at, LONGEST);
        return;
    }
    match Program::compile(source, &DECLARED) {
        // What binds a name is not read by our CEL, and is taken as it is.
        Err(_) if source.contains("cel.bind(") => {}
        Err(why) => errors.invalid(at, source, format!("compilation failed: {why}")),
        Ok(program) if !matches!(program.kind(), Type::Bool | Type::Any | Type::Dyn) => {
            let kind = program.kind();
            errors.invalid(at, source, format!("must evaluate to bool or the unknown type, not {kind}"));
        }
        Ok(program) => {
            let cost = program.estimate(&[("device", false)], &DEVICE);
            if (MOST_EXPENSIVE + 1..UNKNOWN).contains(&cost) {
                errors.forbidden(at, "too complex, exceeds cost limit");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(expression: &str) -> Vec<String> {
        let cel = Some(CELDeviceSelector { expression: expression.to_owned() });
        let mut errors = FieldErrors::new();
        selectors(Some(&[DeviceSelector { cel }]), &FieldPath::new("x"), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn expressions_see_a_device() {
        for good in [
            "device.driver == 'dra.example.com'",
            "device.allowMultipleAllocations",
            "device.attributes['dra.example.com'].healthy",
            "device.attributes['dra.example.com'].cores > 3",
            "'dra.example.com' in device.attributes",
            "device.attributes['dra.example.com'].version.isGreaterThan(semver('0.0.1'))",
            "device.attributes['dra.example.com'].services.split('example').size() >= 2",
            "device.capacity['dra.example.com'].memory.isGreaterThan(quantity('1Ki'))",
            "device.capacity['dra.example.com'].memory.compareTo(quantity('1Gi')) >= 0",
            "cel.bind(dra, device.attributes['dra.example.com'], dra.a && dra.b)",
        ] {
            assert_eq!(told(good), [""; 0], "{good}");
        }
    }

    #[test]
    fn an_expression_is_told_by_what_is_wrong_with_it() {
        let at = "x[0].cel.expression: ";
        for (wrong, why) in [
            ("device.driver ==", "compilation failed: ERROR: <input>:1:"),
            ("device.nothing", "undefined field 'nothing'"),
            (
                "device.attributes[true].someBoolean",
                "found no matching overload for '_[_]' applied to '(map(string, map(string, any)), bool)'",
            ),
            ("1", "Invalid value: \"1\": must evaluate to bool or the unknown type, not int"),
        ] {
            let told = told(wrong);
            assert!(told[0].starts_with(at) && told[0].contains(why), "{told:?}");
        }
        let ten = "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]";
        let deep = (0..7)
            .fold("int('1'.find('[0-9]*')) < 100".to_owned(), |inner, i| format!("{ten}.all(x{i}, {inner})"));
        assert_eq!(told(&deep), ["x[0].cel.expression: Forbidden: too complex, exceeds cost limit"]);
        let long = format!("device.driver == '{}'", "x".repeat(LONGEST));
        assert_eq!(told(&long), ["x[0].cel.expression: Too long: may not be more than 10240 bytes"]);
    }

    #[test]
    fn a_selector_is_an_expression() {
        let mut errors = FieldErrors::new();
        selectors(Some(&[DeviceSelector::default()]), &FieldPath::new("x"), &mut errors);
        assert_eq!(errors.aggregate(), "x[0].cel: Required value");
    }
}
