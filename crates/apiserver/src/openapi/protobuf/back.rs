//! Reads the messages back into the JSON that they were made of, by the numbers of gnostic's `OpenAPIv2.proto` as they
//! stand there, so that a wrong number in the table is found.

use krate_api::protobuf::wire::{Wire, fields};
use serde_json::{Map, Value};

type Read = fn(&[u8], &mut Map<String, Value>);

fn each(bytes: &[u8]) -> impl Iterator<Item = (u64, Wire<'_>)> {
    fields(bytes).map(|field| field.expect("a field"))
}

fn text(value: Wire<'_>) -> Value {
    std::str::from_utf8(value.bytes(0).expect("bytes")).expect("UTF-8").into()
}

fn list<'m>(out: &'m mut Map<String, Value>, name: &str) -> &'m mut Vec<Value> {
    let Value::Array(items) = out.entry(name).or_insert_with(|| Value::Array(Vec::new())) else {
        panic!("{name} is no list")
    };
    items
}

fn object(bytes: &[u8], read: Read) -> Value {
    let mut out = Map::new();
    read(bytes, &mut out);
    Value::Object(out)
}

/// A name and the bytes of its value.
fn named(bytes: &[u8]) -> (String, &[u8]) {
    let (mut name, mut value) = (String::new(), &[][..]);
    for (number, wire) in each(bytes) {
        let bytes = wire.bytes(number).expect("bytes");
        match number {
            1 => name = String::from_utf8(bytes.to_vec()).expect("UTF-8"),
            2 => value = bytes,
            other => panic!("{other} is in no named value"),
        }
    }
    (name, value)
}

fn any(bytes: &[u8]) -> Value {
    let [(2, yaml)] = each(bytes).collect::<Vec<_>>()[..] else { panic!("no Any") };
    serde_yaml_ng::from_slice(yaml.bytes(2).expect("bytes")).expect("YAML")
}

fn extension(bytes: &[u8], out: &mut Map<String, Value>) {
    let (name, value) = named(bytes);
    assert!(name.starts_with("x-"), "{name}");
    out.insert(name, any(value));
}

fn members(bytes: &[u8], member: u64, extensions: u64, read: impl Fn(&[u8]) -> Value) -> Value {
    let mut out = Map::new();
    for (number, wire) in each(bytes) {
        let bytes = wire.bytes(number).expect("bytes");
        if number == extensions {
            extension(bytes, &mut out);
        } else {
            assert_eq!(number, member);
            let (name, value) = named(bytes);
            out.insert(name, read(value));
        }
    }
    Value::Object(out)
}

pub(super) fn document(bytes: &[u8]) -> Value {
    let mut out = Map::new();
    for (number, wire) in each(bytes) {
        let bytes = wire.bytes(number).expect("bytes");
        match number {
            1 => out.insert("swagger".into(), text(wire)),
            2 => out.insert(
                "info".into(),
                object(bytes, |bytes, out| {
                    for (number, wire) in each(bytes) {
                        out.insert(["title", "version"][number as usize - 1].into(), text(wire));
                    }
                }),
            ),
            8 => out.insert("paths".into(), members(bytes, 2, 1, |path| object(path, read_path))),
            9 => out.insert("definitions".into(), members(bytes, 1, 0, |one| object(one, schema))),
            12 => out.insert(
                "security".into(),
                Value::from(vec![members(bytes, 1, 0, |list| {
                    each(list).map(|(_, one)| text(one)).collect()
                })]),
            ),
            13 => out.insert(
                "securityDefinitions".into(),
                members(bytes, 1, 0, |one| {
                    let [(2, key)] = each(one).collect::<Vec<_>>()[..] else { panic!("no key") };
                    object(key.bytes(2).expect("bytes"), |bytes, out| {
                        for (number, wire) in each(bytes) {
                            out.insert(
                                ["type", "name", "in", "description"][number as usize - 1].into(),
                                text(wire),
                            );
                        }
                    })
                }),
            ),
            other => panic!("{other} is not expected in the document"),
        };
    }
    Value::Object(out)
}

fn read_path(bytes: &[u8], out: &mut Map<String, Value>) {
    const METHODS: [&str; 7] = ["get", "put", "post", "delete", "options", "head", "patch"];
    // What is empty has no trace in protobuf.
    list(out, "parameters");
    for (number, wire) in each(bytes) {
        let bytes = wire.bytes(number).expect("bytes");
        match number {
            2..=8 => drop(out.insert(METHODS[number as usize - 2].into(), object(bytes, operation))),
            9 => list(out, "parameters").push(parameter(bytes)),
            other => panic!("{other} is not expected in a path"),
        }
    }
}

fn operation(bytes: &[u8], out: &mut Map<String, Value>) {
    list(out, "parameters");
    for (number, wire) in each(bytes) {
        let bytes = wire.bytes(number).expect("bytes");
        match number {
            1 => list(out, "tags").push(text(wire)),
            5 => drop(out.insert("operationId".into(), text(wire))),
            6 => list(out, "produces").push(text(wire)),
            7 => list(out, "consumes").push(text(wire)),
            8 => list(out, "parameters").push(parameter(bytes)),
            9 => drop(out.insert(
                "responses".into(),
                members(bytes, 1, 2, |one| {
                    let [(1, response)] = each(one).collect::<Vec<_>>()[..] else { panic!("no response") };
                    object(response.bytes(1).expect("bytes"), response_fields)
                }),
            )),
            10 => list(out, "schemes").push(text(wire)),
            13 => extension(bytes, out),
            other => panic!("{other} is not expected in an operation"),
        }
    }
}

fn response_fields(bytes: &[u8], out: &mut Map<String, Value>) {
    for (number, wire) in each(bytes) {
        match number {
            1 => out.insert("description".into(), text(wire)),
            2 => {
                let item = wire.bytes(2).expect("bytes");
                let [(1, one)] = each(item).collect::<Vec<_>>()[..] else { panic!("no schema") };
                out.insert("schema".into(), object(one.bytes(1).expect("bytes"), schema))
            }
            other => panic!("{other} is not expected in a response"),
        };
    }
}

fn parameter(bytes: &[u8]) -> Value {
    let one = |bytes: &[u8]| -> (u64, Vec<u8>) {
        let [(number, wire)] = each(bytes).collect::<Vec<_>>()[..] else { panic!("not one of several") };
        (number, wire.bytes(number).expect("bytes").to_vec())
    };
    let (1, parameter) = one(bytes) else { panic!("a reference") };
    match one(&parameter) {
        (1, body) => object(&body, |bytes, out| {
            for (number, wire) in each(bytes) {
                match number {
                    2 => out.insert("name".into(), text(wire)),
                    3 => out.insert("in".into(), text(wire)),
                    4 => out.insert("required".into(), (wire.varint(4).expect("a number") == 1).into()),
                    5 => out.insert("schema".into(), object(wire.bytes(5).expect("bytes"), schema)),
                    other => panic!("{other} is not expected in a body"),
                };
            }
        }),
        (2, other) => match one(&other) {
            (3, query) => object(&query, |bytes, out| placed(bytes, 6, 20, out)),
            (4, path) => object(&path, |bytes, out| placed(bytes, 5, 19, out)),
            (other, _) => panic!("{other} is not expected as a parameter"),
        },
        (other, _) => panic!("{other} is no parameter"),
    }
}

fn placed(bytes: &[u8], kind: u64, unique: u64, out: &mut Map<String, Value>) {
    let is = |wire: Wire<'_>| Value::from(wire.varint(0).expect("a number") == 1);
    for (number, wire) in each(bytes) {
        match number {
            1 => out.insert("required".into(), is(wire)),
            2 => out.insert("in".into(), text(wire)),
            3 => out.insert("description".into(), text(wire)),
            4 => out.insert("name".into(), text(wire)),
            n if n == kind => out.insert("type".into(), text(wire)),
            n if n == unique => out.insert("uniqueItems".into(), is(wire)),
            other => panic!("{other} is not expected in a parameter"),
        };
    }
}

fn schema(bytes: &[u8], out: &mut Map<String, Value>) {
    let one = |bytes: &[u8]| -> Vec<u8> {
        let [(1, wire)] = each(bytes).collect::<Vec<_>>()[..] else { panic!("not one") };
        wire.bytes(1).expect("bytes").to_vec()
    };
    for (number, wire) in each(bytes) {
        match number {
            1 => drop(out.insert("$ref".into(), text(wire))),
            2 => drop(out.insert("format".into(), text(wire))),
            4 => drop(out.insert("description".into(), text(wire))),
            5 => drop(out.insert("default".into(), any(wire.bytes(5).expect("bytes")))),
            9 => {
                let Wire::Fixed64(bits) = wire else { panic!("a minimum is a double") };
                out.insert("minimum".into(), f64::from_bits(bits).into());
            }
            11 => drop(out.insert("maxLength".into(), wire.varint(11).expect("a number").into())),
            19 => list(out, "required").push(text(wire)),
            20 => list(out, "enum").push(any(wire.bytes(20).expect("bytes"))),
            21 => {
                let inner = object(&one(wire.bytes(21).expect("bytes")), schema);
                out.insert("additionalProperties".into(), inner);
            }
            22 => drop(out.insert("type".into(), {
                let inner = one(wire.bytes(22).expect("bytes"));
                String::from_utf8(inner).expect("UTF-8").into()
            })),
            23 => drop(out.insert("items".into(), object(&one(wire.bytes(23).expect("bytes")), schema))),
            25 => drop(out.insert(
                "properties".into(),
                members(wire.bytes(25).expect("bytes"), 1, 0, |one| object(one, schema)),
            )),
            31 => extension(wire.bytes(31).expect("bytes"), out),
            other => panic!("{other} is not expected in a schema"),
        }
    }
}
