//! What is told of expressions whose types do not fit.

use super::estimate::{Decl, Shape};
use super::*;

/// An object as a schema declares it.
fn thing() -> Type {
    let simple = |kind| Decl { shape: Shape::Simple(kind), most: 0, least: 1 };
    let of = |shape| Decl { shape, most: 0, least: 1 };
    let object = |fields: Vec<(&str, Decl)>| {
        of(Shape::Object(fields.into_iter().map(|(name, decl)| (name.to_owned(), decl)).collect()))
    };
    let port = object(vec![("name", simple(Type::String)), ("port", simple(Type::Int))]);
    let spec = object(vec![
        ("replicas", simple(Type::Int)),
        ("name", simple(Type::String)),
        ("at", simple(Type::Timestamp)),
        ("either", simple(Type::Dyn)),
        ("ports", of(Shape::List(Box::new(port)))),
        ("labels", of(Shape::Map(Box::new(simple(Type::String))))),
    ]);
    Type::of(&object(vec![("spec", spec)]), "Thing")
}

fn read(source: &str) -> std::result::Result<Type, String> {
    let declared = Declared::new(&["any"]).with("object", thing()).with("old", Type::optional(thing()));
    Program::compile(source, &declared.making_objects())
        .map(|program| program.kind().clone())
        .map_err(|error| error.to_string())
}

#[test]
fn types_are_inferred() {
    let mut odd = Vec::new();
    for (source, kind) in [
        ("object.spec.replicas + 1", "int"),
        ("any.x + 1", "int"),
        ("any.x + any.y", "dyn"),
        ("any.x == 1 && object.spec.name.startsWith('a')", "bool"),
        ("object.spec.ports.map(p, p.name)", "list(string)"),
        ("object.spec.ports.filter(p, p.port > 1)[0]", "Thing.spec.ports.@idx"),
        ("object.spec.ports.exists_one(p, p.port == 1)", "bool"),
        ("object.spec.labels.map(k, object.spec.labels[k].size())", "list(int)"),
        ("object.spec.labels.transformMap(k, v, v.size())", "map(string, int)"),
        ("object.spec.ports.transformList(i, p, i > 0, p.port)", "list(int)"),
        ("object.spec.ports.all(i, p, i == p.port)", "bool"),
        ("object.spec.ports.sortBy(p, p.name).map(p, p.port)", "list(int)"),
        ("[] + [1]", "list(int)"),
        ("[[], [1]]", "list(list(int))"),
        ("{}", "map(dyn, dyn)"),
        ("old.spec.replicas", "optional_type(int)"),
        ("old.?spec.name.orValue('none')", "string"),
        ("old.optMap(o, o.spec.replicas).hasValue()", "bool"),
        ("true ? object.spec.replicas : any.y", "dyn"),
        ("object.spec.at - timestamp('2026-01-01T00:00:00Z')", "duration"),
        ("type(object.spec.replicas) == int", "bool"),
        ("object.spec.either == 1 || object.spec.either == 'a'", "bool"),
        ("quantity('1').add(2).isLessThan(quantity('3'))", "bool"),
        ("Object{spec: Object.spec{replicas: 1}}", "Object"),
        ("[JSONPatch{op: 'add', path: '/a', value: 1}]", "list(JSONPatch)"),
        ("'%d %s'.format([1, 'a'])", "string"),
        ("object == null", "bool"),
    ] {
        let read = read(source).map(|kind| kind.to_string());
        if read.as_deref() != Ok(kind) {
            odd.push((source, kind, read));
        }
    }
    assert!(odd.is_empty(), "{odd:#?}");
}

/// The messages are those of cel-go's checker.
#[test]
fn what_does_not_fit_is_told() {
    let mut odd = Vec::new();
    for (source, place, told) in [
        ("object.foo", "1:7", "undefined field 'foo'"),
        ("has(object.spec.foo)", "1:4", "undefined field 'foo'"),
        ("object.?spec.foo", "1:13", "undefined field 'foo'"),
        (
            "object.spec.replicas > '1'",
            "1:22",
            "found no matching overload for '_>_' applied to '(int, string)'",
        ),
        (
            "object.spec.name.startsWith(1)",
            "1:28",
            "found no matching overload for 'startsWith' applied to 'string.(int)'",
        ),
        ("size(1) == 1", "1:5", "found no matching overload for 'size' applied to '(int)'"),
        ("object.spec.replicas.x == 1", "1:21", "type 'int' does not support field selection"),
        (
            "object.spec == object.spec.ports[0]",
            "1:13",
            "found no matching overload for '_==_' applied to '(Thing.spec, Thing.spec.ports.@idx)'",
        ),
        ("object.spec.replicas && true", "1:12", "expected type 'bool' but found 'int'"),
        ("object.spec.ports.all(p, p.name)", "1:27", "expected type 'bool' but found 'string'"),
        (
            "object.spec.replicas.all(x, true)",
            "1:12",
            "expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)",
        ),
        (
            "object.spec.labels == null",
            "1:20",
            "found no matching overload for '_==_' applied to '(map(string, string), null)'",
        ),
        ("[1, 'a'].size() == 2", "1:5", "expected type 'int' but found 'string'"),
        ("{'a': 1, 'b': 'c'}.size() == 2", "1:15", "expected type 'int' but found 'string'"),
        (
            "JSONPatch{op: 1}.op == 'add'",
            "1:13",
            "expected type of field 'op' is 'string' but provided type is 'int'",
        ),
        ("object.spec.at > timestamp('soon')", "1:28", "invalid timestamp argument"),
        ("duration('long') == duration('1s')", "1:10", "invalid duration argument"),
        ("object.spec.name.matches('(')", "1:26", "invalid matches argument"),
        (
            "'%d'.format(['a']) == ''",
            "1:14",
            "error during formatting: decimal clause can only be used on integers, was given string",
        ),
        (
            "'%s'.format([[quantity('1')]]) == ''",
            "1:23",
            "error during formatting: string clause can only be used on strings, bools, bytes, ints, doubles, maps, \
             lists, types, durations, and timestamps, was given kubernetes.Quantity",
        ),
        ("'%s %s'.format(['a']) == ''", "1:15", "index 1 out of range"),
        (
            "'%s'.format(['a', 'b']) == ''",
            "1:12",
            "too many arguments supplied to string.format (expected 1, got 2)",
        ),
        (
            "'%y'.format([1]) == ''",
            "1:12",
            "could not parse formatting clause: unrecognized formatting clause \"y\"",
        ),
        ("'%'.format([1]) == ''", "1:11", "unexpected end of string"),
        ("nothing(1)", "1:8", "undeclared reference to 'nothing' (in container '')"),
        ("object.spec.name.nothing()", "1:25", "undeclared reference to 'nothing' (in container '')"),
        ("true ? 1 : 'a'", "1:6", "found no matching overload for '_?_:_' applied to '(bool, int, string)'"),
        (
            "old.optFlatMap(o, o.spec.replicas).hasValue()",
            "1:15",
            "found no matching overload for '_?_:_' applied to '(bool, int, optional_type(dyn))'",
        ),
    ] {
        let wanted = format!("ERROR: <input>:{place}: {told}");
        let error = read(source).map_err(|error| error.lines().next().unwrap_or_default().to_owned());
        if error.as_ref() != Err(&wanted) {
            odd.push((source, wanted, error));
        }
    }
    assert!(odd.is_empty(), "{odd:#?}");
}

#[test]
fn faults_are_told_in_the_order_of_their_places() {
    assert_eq!(
        read("object.b == 1 &&\n\t'ä' == object.a").expect_err("two faults"),
        "ERROR: <input>:1:7: undefined field 'b'\n | object.b == 1 &&\n | ......^\n\
         ERROR: <input>:2:15: undefined field 'a'\n |  'ä' == object.a\n | ..\u{ff0e}...........^"
    );
}

#[test]
fn an_expression_of_very_many_parts_is_checked_in_time() {
    let many = vec!["object.spec.replicas == 1"; 5000].join(" || ");
    let since = std::time::Instant::now();
    assert_eq!(read(&many), Ok(Type::Bool));
    assert!(since.elapsed() < std::time::Duration::from_secs(20), "{:?}", since.elapsed());
}
