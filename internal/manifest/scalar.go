package manifest

import (
	"math"
	"regexp"
	"strconv"
	"strings"
)

// plainWord gives the YAML 1.1 words that are not strings.
func plainWord(text string) (node, bool) {
	switch text {
	case "", "~", "null", "Null", "NULL":
		return node{kind: nullNode, text: text}, true
	case "y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON":
		return node{kind: boolNode, bool: true, text: text}, true
	case "n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF":
		return node{kind: boolNode, text: text}, true
	case ".nan", ".NaN", ".NAN":
		return node{kind: numberNode, number: math.NaN(), text: text}, true
	case ".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF":
		return node{kind: numberNode, number: math.Inf(1), text: text}, true
	case "-.inf", "-.Inf", "-.INF":
		return node{kind: numberNode, number: math.Inf(-1), text: text}, true
	default:
		return node{}, false
	}
}

// scalars reads scalars. It holds the compiled patterns, so that the package has
// no state.
type scalars struct {
	// float is YAML 1.1's number with a point or an exponent, in base 10.
	float *regexp.Regexp
	// quantity is the syntax of apimachinery's resource.Quantity.
	quantity *regexp.Regexp
}

func newScalars() scalars {
	return scalars{
		float:    regexp.MustCompile(`^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$`),
		quantity: regexp.MustCompile(`^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$`),
	}
}

// plain gives a scalar without quotes and tag the meaning it has for kubectl: YAML
// 1.1 with Go's prefixes. So 010 is 8, 0o17 is 15, 080 (which is not octal) is
// 80, 1_000 is 1000; dates, versions such as 1.2.3 and sexagesimals such as
// 12:30 are strings.
func (s scalars) plain(text string) node {
	if n, ok := plainWord(text); ok {
		return n
	}
	first := text[0]
	if first == '.' {
		if f, err := strconv.ParseFloat(text, 64); err == nil {
			return number(text, f)
		}
		return node{kind: stringNode, text: text}
	}
	if first != '+' && first != '-' && (first < '0' || first > '9') {
		return node{kind: stringNode, text: text}
	}
	digits := strings.ReplaceAll(text, "_", "")
	if i, err := strconv.ParseInt(digits, 0, 64); err == nil {
		return node{kind: numberNode, integer: i, number: float64(i), isInt: true, text: text}
	}
	if u, err := strconv.ParseUint(digits, 0, 64); err == nil {
		return node{kind: numberNode, number: float64(u), text: text}
	}
	if s.float.MatchString(digits) {
		if f, err := strconv.ParseFloat(digits, 64); err == nil {
			return number(text, f)
		}
	}
	return node{kind: stringNode, text: text}
}

// number makes a node of a float. One that is a whole number is an integer, as it
// is once kubectl has turned YAML into JSON: 80.0 is a port.
func number(text string, f float64) node {
	n := node{kind: numberNode, number: f, float: true, text: text}
	if f == math.Trunc(f) && math.Abs(f) < 1<<53 {
		n.integer, n.isInt = int64(f), true
	}
	return n
}

// jsonNumber reads a number in JSON's grammar.
func jsonNumber(text string) (node, bool) {
	if i, err := strconv.ParseInt(text, 10, 64); err == nil {
		return node{kind: numberNode, integer: i, number: float64(i), isInt: true, text: text}, true
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return node{}, false
	}
	return number(text, f), true
}

// exact says whether a float64 holds the number without loss.
func (n *node) exact() bool {
	if n.isInt {
		return n.integer >= -(1<<53) && n.integer <= 1<<53
	}
	return n.finite() && math.Abs(n.number) < 1<<53
}

// finite says whether the number is one that JSON has.
func (n *node) finite() bool { return !math.IsInf(n.number, 0) && !math.IsNaN(n.number) }

// keyText is the name that a scalar has as a key, as kubectl's YAML-to-JSON step
// writes it: 010 becomes "8", yes becomes "true".
func (n *node) keyText() (string, bool) {
	switch n.kind {
	case stringNode:
		return n.text, true
	case boolNode:
		return strconv.FormatBool(n.bool), true
	case numberNode:
		if !n.float {
			return strconv.FormatInt(n.integer, 10), n.isInt
		}
		name := strconv.FormatFloat(n.number, 'g', -1, 32)
		if special, ok := map[string]string{"+Inf": ".inf", "-Inf": "-.inf", "NaN": ".nan"}[name]; ok {
			name = special
		}
		return name, true
	default:
		return "", false
	}
}
