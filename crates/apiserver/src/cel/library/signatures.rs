//! What functions and operators take and what they make, all in one place: who checks an expression reads it here, and
//! what exists at all. Those of cel-go's standard library, of its extensions for strings (version 2), lists (version 3),
//! sets, optional values and two variables, and of Kubernetes' own libraries, as far as v1.36 lets new expressions use
//! them.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::cel::types::Type;

/// A line each: the name, of a method the type that it is called on, what it takes, what it makes. Big letters stand for
/// any type; a line with COMPARABLE or SUMMABLE is one for each type of that sort.
const SIGNATURES: &str = "
_?_:_ (bool, A, A) A
_&&_ (bool, bool) bool
_||_ (bool, bool) bool
!_ (bool) bool
@not_strictly_false (bool) bool
_==_ (A, A) bool
_!=_ (A, A) bool
_<_ (COMPARABLE, COMPARABLE) bool
_<_ (int, double) bool
_<_ (int, uint) bool
_<_ (uint, double) bool
_<_ (uint, int) bool
_<_ (double, int) bool
_<_ (double, uint) bool
_<=_ (COMPARABLE, COMPARABLE) bool
_<=_ (int, double) bool
_<=_ (int, uint) bool
_<=_ (uint, double) bool
_<=_ (uint, int) bool
_<=_ (double, int) bool
_<=_ (double, uint) bool
_>_ (COMPARABLE, COMPARABLE) bool
_>_ (int, double) bool
_>_ (int, uint) bool
_>_ (uint, double) bool
_>_ (uint, int) bool
_>_ (double, int) bool
_>_ (double, uint) bool
_>=_ (COMPARABLE, COMPARABLE) bool
_>=_ (int, double) bool
_>=_ (int, uint) bool
_>=_ (uint, double) bool
_>=_ (uint, int) bool
_>=_ (double, int) bool
_>=_ (double, uint) bool
_+_ (bytes, bytes) bytes
_+_ (double, double) double
_+_ (duration, duration) duration
_+_ (duration, timestamp) timestamp
_+_ (timestamp, duration) timestamp
_+_ (int, int) int
_+_ (list(A), list(A)) list(A)
_+_ (string, string) string
_+_ (uint, uint) uint
_-_ (double, double) double
_-_ (duration, duration) duration
_-_ (int, int) int
_-_ (timestamp, duration) timestamp
_-_ (timestamp, timestamp) duration
_-_ (uint, uint) uint
_*_ (double, double) double
_*_ (int, int) int
_*_ (uint, uint) uint
_/_ (double, double) double
_/_ (int, int) int
_/_ (uint, uint) uint
_%_ (int, int) int
_%_ (uint, uint) uint
-_ (double) double
-_ (int) int
_[_] (list(A), int) A
_[_] (map(A, B), A) B
_[_] (optional(list(A)), int) optional(A)
_[_] (optional(map(A, B)), A) optional(B)
_[?_] (list(A), int) optional(A)
_[?_] (optional(list(A)), int) optional(A)
_[?_] (map(A, B), A) optional(B)
_[?_] (optional(map(A, B)), A) optional(B)
@in (A, list(A)) bool
@in (A, map(A, B)) bool

size (bytes) int
size bytes.() int
size (list(A)) int
size list(A).() int
size (map(A, B)) int
size map(A, B).() int
size (string) int
size string.() int
type (A) type(A)
dyn (A) dyn
bool (bool) bool
bool (string) bool
bytes (bytes) bytes
bytes (string) bytes
double (double) double
double (int) double
double (string) double
double (uint) double
duration (duration) duration
duration (string) duration
int (int) int
int (double) int
int (duration) int
int (string) int
int (timestamp) int
int (uint) int
string (string) string
string (bool) string
string (bytes) string
string (double) string
string (duration) string
string (int) string
string (timestamp) string
string (uint) string
string (ip) string
string (cidr) string
timestamp (timestamp) timestamp
timestamp (int) timestamp
timestamp (string) timestamp
uint (uint) uint
uint (double) uint
uint (int) uint
uint (string) uint

contains string.(string) bool
endsWith string.(string) bool
startsWith string.(string) bool
matches (string, string) bool
matches string.(string) bool
getFullYear timestamp.() int
getFullYear timestamp.(string) int
getMonth timestamp.() int
getMonth timestamp.(string) int
getDayOfYear timestamp.() int
getDayOfYear timestamp.(string) int
getDayOfMonth timestamp.() int
getDayOfMonth timestamp.(string) int
getDate timestamp.() int
getDate timestamp.(string) int
getDayOfWeek timestamp.() int
getDayOfWeek timestamp.(string) int
getHours timestamp.() int
getHours timestamp.(string) int
getHours duration.() int
getMinutes timestamp.() int
getMinutes timestamp.(string) int
getMinutes duration.() int
getSeconds timestamp.() int
getSeconds timestamp.(string) int
getSeconds duration.() int
getMilliseconds timestamp.() int
getMilliseconds timestamp.(string) int
getMilliseconds duration.() int

charAt string.(int) string
indexOf string.(string) int
indexOf string.(string, int) int
lastIndexOf string.(string) int
lastIndexOf string.(string, int) int
lowerAscii string.() string
upperAscii string.() string
replace string.(string, string) string
replace string.(string, string, int) string
split string.(string) list(string)
split string.(string, int) list(string)
substring string.(int) string
substring string.(int, int) string
trim string.() string
format string.(list(dyn)) string
join list(string).() string
join list(string).(string) string
strings.quote (string) string
find string.(string) string
findAll string.(string) list(string)
findAll string.(string, int) list(string)

isSorted list(COMPARABLE).() bool
sum list(SUMMABLE).() SUMMABLE
max list(COMPARABLE).() COMPARABLE
min list(COMPARABLE).() COMPARABLE
indexOf list(A).(A) int
lastIndexOf list(A).(A) int
slice list(A).(int, int) list(A)
flatten list(list(A)).() list(A)
flatten list(dyn).(int) list(dyn)
sort list(COMPARABLE).() list(COMPARABLE)
@sortByAssociatedKeys list(A).(list(COMPARABLE)) list(A)
lists.range (int) list(int)
reverse list(A).() list(A)
distinct list(A).() list(A)
sets.contains (list(A), list(A)) bool
sets.equivalent (list(A), list(A)) bool
sets.intersects (list(A), list(A)) bool
cel.@mapInsert (map(A, B), A, B) map(A, B)
cel.@mapInsert (map(A, B), map(A, B)) map(A, B)

optional.of (A) optional(A)
optional.ofNonZeroValue (A) optional(A)
optional.none () optional(A)
value optional(A).() A
hasValue optional(A).() bool
or optional(A).(optional(A)) optional(A)
orValue optional(A).(A) A

quantity (string) quantity
isQuantity (string) bool
sign (quantity) int
sign quantity.() int
isGreaterThan quantity.(quantity) bool
isLessThan quantity.(quantity) bool
compareTo quantity.(quantity) int
asApproximateFloat quantity.() double
asInteger quantity.() int
isInteger quantity.() bool
add quantity.(quantity) quantity
add quantity.(int) quantity
sub quantity.(quantity) quantity
sub quantity.(int) quantity
semver (string) semver
semver (string, bool) semver
isSemver (string) bool
isSemver (string, bool) bool
isGreaterThan semver.(semver) bool
isLessThan semver.(semver) bool
compareTo semver.(semver) int
major semver.() int
minor semver.() int
patch semver.() int
ip (string) ip
isIP (string) bool
ip.isCanonical (string) bool
family ip.() int
isUnspecified ip.() bool
isLoopback ip.() bool
isLinkLocalMulticast ip.() bool
isLinkLocalUnicast ip.() bool
isGlobalUnicast ip.() bool
cidr (string) cidr
isCIDR (string) bool
containsIP cidr.(string) bool
containsIP cidr.(ip) bool
containsCIDR cidr.(string) bool
containsCIDR cidr.(cidr) bool
ip cidr.() ip
prefixLength cidr.() int
masked cidr.() cidr
url (string) url
isURL (string) bool
getScheme url.() string
getHost url.() string
getHostname url.() string
getPort url.() string
getEscapedPath url.() string
getQuery url.() map(string, list(string))
format.named (string) optional(format)
format.dns1123Label () format
format.dns1123Subdomain () format
format.dns1035Label () format
format.qualifiedName () format
format.dns1123LabelPrefix () format
format.dns1123SubdomainPrefix () format
format.dns1035LabelPrefix () format
format.labelValue () format
format.uri () format
format.uuid () format
format.byte () format
format.date () format
format.datetime () format
validate format.(string) optional(list(string))
jsonpatch.escapeKey (string) string

path authorizer.(string) pathcheck
group authorizer.(string) groupcheck
serviceAccount authorizer.(string, string) authorizer
resource groupcheck.(string) resourcecheck
subresource resourcecheck.(string) resourcecheck
namespace resourcecheck.(string) resourcecheck
name resourcecheck.(string) resourcecheck
fieldSelector resourcecheck.(string) resourcecheck
labelSelector resourcecheck.(string) resourcecheck
check pathcheck.(string) decision
check resourcecheck.(string) decision
errored decision.() bool
error decision.() string
allowed decision.() bool
reason decision.() string
";

const COMPARABLE: &[&str] = &["bool", "int", "uint", "double", "string", "bytes", "timestamp", "duration"];
const SUMMABLE: &[&str] = &["int", "uint", "double", "duration"];

/// The names of Kubernetes' own types.
pub const QUANTITY: &str = "kubernetes.Quantity";
pub const SEMVER: &str = "kubernetes.Semver";
pub const URL: &str = "kubernetes.URL";
pub const IP: &str = "net.IP";
pub const CIDR: &str = "net.CIDR";
pub const AUTHORIZER: &str = "kubernetes.authorization.Authorizer";
pub const RESOURCE_CHECK: &str = "kubernetes.authorization.ResourceCheck";

/// One way to call a function.
#[derive(Clone, Debug)]
pub struct Signature {
    /// It is called on its first argument.
    pub is_method: bool,
    pub takes: Vec<Type>,
    pub makes: Type,
    /// How many types it leaves open.
    pub parameters: usize,
}

static ALL: LazyLock<HashMap<&'static str, Vec<Signature>>> = LazyLock::new(|| {
    let mut all: HashMap<&'static str, Vec<Signature>> = HashMap::new();
    for line in SIGNATURES.lines().filter(|line| !line.is_empty()) {
        let Some((name, text)) = line.split_once(' ') else { continue };
        let of = all.entry(name).or_default();
        match [("COMPARABLE", COMPARABLE), ("SUMMABLE", SUMMABLE)]
            .iter()
            .find(|(sort, _)| text.contains(sort))
        {
            Some((sort, types)) => {
                of.extend(types.iter().filter_map(|kind| signature(&text.replace(sort, kind))));
            }
            None => of.extend(signature(text)),
        }
    }
    all
});

/// The ways to call the function of a name; none if there is none.
pub fn of(name: &str) -> &'static [Signature] {
    ALL.get(name).map_or(&[], Vec::as_slice)
}

/// Whether there is a function or an operator that is called by this name alone.
pub fn is_function(name: &str) -> bool {
    of(name).iter().any(|signature| !signature.is_method)
}

fn signature(text: &str) -> Option<Signature> {
    let mut reader = Reader { rest: text, parameters: 0 };
    let mut takes = Vec::new();
    let is_method = !reader.rest.starts_with('(');
    if is_method {
        takes.push(reader.kind()?);
        reader.skip(".");
    }
    takes.extend(reader.kinds()?);
    reader.skip(" ");
    let makes = reader.kind()?;
    reader.rest.is_empty().then_some(Signature { is_method, takes, makes, parameters: reader.parameters })
}

struct Reader<'t> {
    rest: &'t str,
    parameters: usize,
}

impl Reader<'_> {
    fn skip(&mut self, text: &str) -> bool {
        let rest = self.rest.strip_prefix(text);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// What stands in brackets.
    fn kinds(&mut self) -> Option<Vec<Type>> {
        let mut kinds = Vec::new();
        if !self.skip("(") {
            return None;
        }
        while !self.skip(")") {
            kinds.push(self.kind()?);
            self.skip(", ");
        }
        Some(kinds)
    }

    fn kind(&mut self) -> Option<Type> {
        let end = self.rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        let simple = match word {
            "dyn" => Type::Dyn,
            "bool" => Type::Bool,
            "int" => Type::Int,
            "uint" => Type::Uint,
            "double" => Type::Double,
            "string" => Type::String,
            "bytes" => Type::Bytes,
            "duration" => Type::Duration,
            "timestamp" => Type::Timestamp,
            "ip" => Type::Opaque(IP),
            "cidr" => Type::Opaque(CIDR),
            "quantity" => Type::object(QUANTITY, []),
            "semver" => Type::object(SEMVER, []),
            "url" => Type::object(URL, []),
            "format" => Type::object("kubernetes.NamedFormat", []),
            "authorizer" => Type::object(AUTHORIZER, []),
            "pathcheck" => Type::object("kubernetes.authorization.PathCheck", []),
            "groupcheck" => Type::object("kubernetes.authorization.GroupCheck", []),
            "resourcecheck" => Type::object(RESOURCE_CHECK, []),
            "decision" => Type::object("kubernetes.authorization.Decision", []),
            _ => {
                if let &[letter @ b'A'..=b'Z'] = word.as_bytes() {
                    let place = letter - b'A';
                    self.parameters = self.parameters.max(usize::from(place) + 1);
                    return Some(Type::Parameter(place));
                }
                let mut of = self.kinds()?.into_iter();
                return Some(match (word, of.next()?, of.next()) {
                    ("list", of, None) => Type::list(of),
                    ("optional", of, None) => Type::optional(of),
                    ("type", of, None) => Type::Type(Some(of.into())),
                    ("map", key, Some(of)) => Type::Map(key.into(), of.into()),
                    _ => return None,
                });
            }
        };
        Some(simple)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_a_signature() {
        for line in SIGNATURES.lines().filter(|line| !line.is_empty()) {
            let (name, text) = line.split_once(' ').expect("a name");
            let text = text.replace("COMPARABLE", "int").replace("SUMMABLE", "int");
            let read = signature(&text).unwrap_or_else(|| panic!("{line}"));
            let takes: Vec<String> = read.takes.iter().map(ToString::to_string).collect();
            let (target, args) = takes.split_at(usize::from(read.is_method));
            let target = target.first().map(|target| format!("{target}.")).unwrap_or_default();
            // The names of types are short in the table.
            let short = |text: String| {
                text.replace("optional_type(", "optional(")
                    .replace("kubernetes.authorization.", "")
                    .replace("kubernetes.NamedFormat", "format")
                    .replace("kubernetes.", "")
                    .replace("net.", "")
                    .to_lowercase()
            };
            let shown = short(format!("{name} {target}({}) {}", args.join(", "), read.makes));
            assert_eq!(shown, short(format!("{name} {text}")));
        }
    }

    #[test]
    fn a_sort_of_types_is_each_of_them() {
        assert_eq!(of("_<_").len(), COMPARABLE.len() + 6);
        assert_eq!(of("sum").len(), SUMMABLE.len());
        assert!(of("nothing").is_empty());
        assert!(is_function("size") && is_function("sets.contains") && !is_function("trim"));
    }
}
