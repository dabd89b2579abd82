use serde_json::json;

use super::*;

fn object() -> Value {
    Value::from_json(&json!({
        "metadata": {"name": "web", "labels": {"a": "1", "b/c": "x"}, "namespace": "ns"},
        "spec": {"replicas": 3, "items": [1, 2, 3], "ratio": 0.5, "x-y": "dash", "hosts": ["a.b", "c"]},
    }))
}

fn evaluate(source: &str) -> Result<Value> {
    let declared = Declared::new(&["object", "oldObject"]).making_objects();
    let program = Program::compile(source, &declared).map_err(|error| Error::new(error.to_string()))?;
    let variables = [("object", object()), ("oldObject", Value::Null)];
    program.evaluate(&variables[..], &mut Budget::new(PER_POLICY))
}

#[test]
fn expressions_that_hold() {
    let cases = [
        "1 + 2 * 3 == 7 && 7 / 2 == 3 && 7 % 4 == 3 && -7 / 2 == -3",
        "object.spec.replicas > 2 && object.spec.ratio < 1 && dyn(1) == 1.0 && 1u < 2",
        "has(object.metadata.labels) && !has(object.metadata.annotations)",
        "object.metadata.labels['b/c'] == 'x' && 'a' in object.metadata.labels && 2 in object.spec.items",
        "object.spec.x__dash__y == 'dash' && object.spec.`x-y` == 'dash' && object.metadata.namespace == 'ns'",
        "object.spec.items.all(i, i > 0) && object.spec.items.exists(i, i == 2)",
        "object.spec.items.exists_one(i, i == 2) && object.spec.items.map(i, i * 2) == [2, 4, 6]",
        "object.spec.items.filter(i, i > 1) == [2, 3] && object.spec.items.map(i, i > 1, i + 1) == [3, 4]",
        "object.metadata.labels.all(k, k.size() > 0) && {'a': 1}.exists(k, k == 'a')",
        "object.spec.items.all(i, v, i + 1 == v) && {'a': 1}.transformMap(k, v, v + 1) == {'a': 2}",
        "[1, 2].transformList(i, v, i * v) == [0, 2] && {'a': 1}.transformMapEntry(k, v, {v: k}) == {1: 'a'}",
        "false && (1 / 0 == 1) == false || true",
        "(1 / 0 == 1) || true",
        "[0, 1].exists(x, 1 / x == 1)",
        "object.?spec.?missing.orValue('d') == 'd' && object.?spec.replicas.hasValue()",
        "optional.of(2).optMap(x, x * 2).value() == 4 && !optional.none().hasValue() && [?optional.none(), 1] == [1]",
        "type(1) == int && type('a') == string && type(timestamp('2026-01-01T00:00:00Z')) == google.protobuf.Timestamp",
        "timestamp('2026-01-02T03:04:05Z') - timestamp('2026-01-01T03:04:05Z') == duration('24h')",
        "timestamp('2026-01-02T03:04:05Z').getMonth() == 0 && timestamp('2026-01-02T03:04:05Z').getHours('+02:00') == 5",
        "string(duration('1m30s')) == '90s' && int('12') == 12 && string(1.5) == '1.5' && double(2) == 2.0",
        "'abc'.startsWith('a') && 'abc'.matches('^a.c$') && 'aXbX'.replace('X', '') == 'ab'",
        "'a,b,c'.split(',') == ['a', 'b', 'c'] && ['a', 'b'].join('-') == 'a-b' && 'hello'.substring(1, 3) == 'el'",
        "'hello'.indexOf('l') == 2 && 'hello'.lastIndexOf('l') == 3 && ' x '.trim() == 'x' && 'Ab'.lowerAscii() == 'ab'",
        "'%s is %d, %.2f'.format(['x', 3, 1.5]) == 'x is 3, 1.50' && '%x'.format([255]) == 'ff'",
        "[3, 1, 2].sort() == [1, 2, 3] && [1, 2].isSorted() && [1, 2].sum() == 3 && [1, 5, 2].max() == 5",
        "[{'n': 2}, {'n': 1}].sortBy(x, x.n)[0].n == 1 && [1, 1, 2].distinct() == [1, 2] && [[1], [2]].flatten() == [1, 2]",
        "[1, 2, 3].slice(1, 2) == [2] && lists.range(3) == [0, 1, 2] && [1, 2].reverse() == [2, 1]",
        "sets.contains([1, 2], [1]) && sets.equivalent([1, 2], [2, 1, 1]) && sets.intersects([1], [1, 3])",
        "'abc123'.find('[0-9]+') == '123' && 'a1b2'.findAll('[0-9]') == ['1', '2']",
        "quantity('1Gi').isGreaterThan(quantity('1G')) && quantity('50k').add(quantity('1k')) == quantity('51k')",
        "isQuantity('1.3Gi') && !isQuantity('x') && quantity('2').asInteger() == 2 && quantity('200m').sign() == 1",
        "semver('1.2.3').isLessThan(semver('1.10.0')) && semver('v1.2', true).minor() == 2 && !isSemver('1.2')",
        "semver('1.0.0-rc.1').compareTo(semver('1.0.0')) == -1",
        "ip('10.0.0.1').family() == 4 && isIP('::1') && !isIP('x') && ip('127.0.0.1').isLoopback()",
        "cidr('10.0.0.0/8').containsIP('10.1.2.3') && cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16')",
        "cidr('10.1.2.3/8').masked() == cidr('10.0.0.0/8') && string(ip('1.2.3.4')) == '1.2.3.4' && !isCIDR('1.2.3.4/40')",
        "url('https://u:p@example.com:80/a/b?x=1&x=2').getHost() == 'example.com:80'",
        "url('https://example.com:80/a?x=1&x=2').getQuery()['x'] == ['1', '2'] && url('/p').getEscapedPath() == '/p'",
        "!isURL('not a url') && url('https://[::1]:80/').getHostname() == '::1'",
        "!format.dns1123Label().validate('good-name').hasValue() && format.dns1123Label().validate('Bad').hasValue()",
        "format.named('uuid').value().validate('x').value() == ['does not match the UUID format']",
        "!format.uuid().validate('f47ac10b58cc4372a5670e02b2c3d479').hasValue() && format.byte().validate('').hasValue()",
        "format.datetime().validate('2026-01-01 00:00:00Z').value() == ['invalid datetime']",
        "format.uri().validate('a').value() == ['parse \"a\": invalid URI for request']",
        "url('https://example.com/a b').getEscapedPath() == '/a%20b' && isURL('mailto:x') && !isURL('../a')",
        "jsonpatch.escapeKey('a/b~') == 'a~1b~0' && b'abc'.size() == 3 && size({'a': 1}) == 1",
        "Object{spec: Object.spec{replicas: 2}}.spec.replicas == 2 && JSONPatch{op: 'add', path: '/x'}.op == 'add'",
        "oldObject == null && (oldObject == null ? 'new' : 'old') == 'new' && dyn(1) == 1u",
    ];
    let odd: Vec<_> = cases
        .iter()
        .map(|case| (case, evaluate(case)))
        .filter(|(_, v)| *v != Ok(Value::Bool(true)))
        .collect();
    assert!(odd.is_empty(), "{odd:#?}");
}

#[test]
fn expressions_that_fail_say_why() {
    let cases = [
        ("object.spec.nothing == 1", "no such key: nothing"),
        ("1 / 0 == 1", "division by zero"),
        ("9223372036854775807 + 1 > 0", "integer overflow"),
        ("dyn('a') + 1 == 2", "no such overload"),
        ("[1][2] == 1", "index out of bounds: 2"),
        ("int('x') == 1", "strconv.ParseInt: parsing \"x\": invalid syntax"),
        ("[1].all(x, x / 0 == 1)", "division by zero"),
    ];
    for (source, why) in cases {
        assert_eq!(evaluate(source), Err(Error::new(why)), "{source}");
    }
}

#[test]
fn texts_that_are_no_expressions_are_told_with_a_pointer() {
    let message = |source: &str| {
        Program::compile(source, &Declared::new(&["object"])).expect_err("no expression").to_string()
    };
    assert_eq!(
        message("object.data +"),
        "ERROR: <input>:1:14: Syntax error: mismatched input '<EOF>' expecting {'[', '{', '(', '.', '-', '!', 'true', \
         'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}\n | object.data +\n | .............^"
    );
    assert_eq!(
        message("true && x == 1"),
        "ERROR: <input>:1:9: undeclared reference to 'x' (in container '')\n | true && x == 1\n | ........^"
    );
    assert!(message("nothing(1)").contains("undeclared reference to 'nothing'"));
    assert!(message("object.nothing(1)").contains("undeclared reference to 'nothing'"));
    assert!(message("[1].all(x, y > x)").contains("undeclared reference to 'y'"));
}

#[test]
fn what_costs_too_much_is_stopped() {
    let many = format!("[{}]", vec!["1"; 200].join(", "));
    let deep = format!("{many}.all(a, {many}.all(b, {many}.all(c, {many}.all(d, a + b + c + d > 0))))");
    assert_eq!(evaluate(&deep), Err(Error::OutOfBudget));
    assert_eq!(evaluate(&format!("true || {deep}")), Ok(Value::Bool(true)));
    assert_eq!(evaluate(&format!("({deep}) || true")), Err(Error::OutOfBudget), "nothing makes up for it");
    let words = "['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h']";
    let text = format!("{words}.map(a, {words}.map(b, lists.range(100000).size())).size() > 0");
    assert_eq!(evaluate(&text), Err(Error::OutOfBudget));
    let mut budget = Budget::new(10);
    let program =
        Program::compile("object.a + object.a", &Declared::new(&["object"])).expect("an expression");
    let variables = [("object", Value::from_json(&json!({"a": 1})))];
    assert_eq!(program.evaluate(&variables[..], &mut budget), Ok(Value::Int(2)));
    assert!(budget.left() < 10, "it is charged");
}
