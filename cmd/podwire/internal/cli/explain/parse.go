package explain

import (
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"podwire.dev/internal/errs"
)

// Kind says what an end of a connection is by its text.
type Kind uint8

// The kinds.
const (
	// Any is a name that may be a Service's or a Pod's.
	Any Kind = iota
	// Pod is a Pod's name.
	Pod
	// Service is a Service's name.
	Service
	// Node is a node itself.
	Node
	// Address is an IP address.
	Address
	// Outside is a host outside of the cluster, no matter which.
	Outside
)

// End is one end of a connection.
type End struct {
	Kind Kind
	// Namespace is empty where the text names none.
	Namespace, Name string
	// Addr is set where Kind is Address: no zone, and IPv4 in its own form.
	Addr netip.Addr
}

// Target is where a connection goes.
type Target struct {
	End
	// Port is 0 where the text has none, or a name.
	Port uint16
	// PortName is a port's name in a Service or a Pod.
	PortName string
	// Protocol is TCP, UDP or SCTP.
	Protocol string
	// Scheme is http or https where the text is a URL, and Path what it asks for; Name or Addr is its host then.
	Scheme, Path string
}

const outsideWord = "outside"

// prefixes are the words before a name that say what it is.
var prefixes = map[string]Kind{
	"pod": Pod, "pods": Pod, "po": Pod, "service": Service, "services": Service, "svc": Service, "node": Node, "nodes": Node, "no": Node,
}

// ParseFrom reads where a connection comes from: [pod/][NAMESPACE/]NAME, node/NAME, an address, or outside. Errors: Invalid.
func ParseFrom(text string) (End, error) {
	if text == outsideWord {
		return End{Kind: Outside}, nil
	}
	e, err := parseEnd(text)
	switch {
	case err != nil:
		return End{}, err
	case e.Kind == Service:
		return End{}, errs.New(errs.Invalid, "%q: a connection comes from a pod, node/NAME, an address, or outside, and from no service", text)
	case strings.HasSuffix(e.Name, "."):
		return End{}, errs.New(errs.Invalid, "%q: a connection comes from a pod by its own name, which has no dot at its end", text)
	case e.Kind == Any:
		e.Kind = Pod
	}
	return e, nil
}

// ParseTarget reads where a connection goes: END[:PORT][/PROTOCOL]. END is [NAMESPACE/]NAME or NAME.NAMESPACE of a service
// or a pod, pod/…, service/…, node/NAME, or an address; an IPv6 address with a port stands in brackets. PORT is a number or
// a port's name; PROTOCOL is TCP, UDP or SCTP. Or it is http://HOST[:PORT]/PATH, or https. Errors: Invalid.
func ParseTarget(text string) (Target, error) {
	if scheme, rest, ok := strings.Cut(text, "://"); ok {
		return parseURL(text, scheme, rest)
	}
	rest, protocol := cutProtocol(text)
	t := Target{Protocol: protocol}
	host, port, err := cutPort(rest)
	if err != nil {
		return Target{}, err
	}
	if port != "" {
		if err := t.setPort(text, port); err != nil {
			return Target{}, err
		}
	}
	if t.End, err = parseEnd(host); err != nil {
		return Target{}, err
	}
	if t.PortName != "" && t.Kind != Any && t.Kind != Pod && t.Kind != Service {
		return Target{}, errs.New(errs.Invalid, "%q: the port of an address or a node is a number", text)
	}
	return t, nil
}

// parseURL reads what follows the scheme of a URL. A query or a fragment decides nothing, and is left out.
func parseURL(text, scheme, rest string) (Target, error) {
	t := Target{Protocol: "TCP", Scheme: strings.ToLower(scheme), Path: "/"}
	authority := rest
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority = rest[:i]
		path, _, _ := strings.Cut(rest[i:], "#")
		if path, _, _ = strings.Cut(path, "?"); path != "" {
			t.Path = path
		}
	}
	switch t.Scheme {
	case "http":
		t.Port = 80
	case "https":
		t.Port = 443
	default:
		return Target{}, errs.New(errs.Invalid, "%q: a URL begins with http:// or https://", text)
	}
	if strings.ContainsFunc(t.Path, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return Target{}, errs.New(errs.Invalid, "%q: the path must be percent-encoded", text)
	}
	host, port, err := cutPort(authority)
	if err != nil {
		return Target{}, err
	}
	if port != "" {
		if err := t.setPort(text, port); err != nil {
			return Target{}, err
		}
	}
	if t.End, err = parseEnd(strings.ToLower(host)); err != nil {
		return Target{}, err
	}
	if t.PortName != "" || t.Kind != Any && t.Kind != Address {
		return Target{}, errs.New(errs.Invalid, "%q: is no URL: scheme://HOST[:PORT]/PATH, HOST a name or an address, PORT a number", text)
	}
	return t, nil
}

// cutProtocol takes /TCP, /UDP or /SCTP off the end; any other slash belongs to a name.
func cutProtocol(text string) (rest, protocol string) {
	i := strings.LastIndexByte(text, '/')
	if i < 0 {
		return text, "TCP"
	}
	p := strings.ToUpper(text[i+1:])
	if p != "TCP" && p != "UDP" && p != "SCTP" {
		return text, "TCP"
	}
	if _, isKind := prefixes[text[:i]]; isKind && p != text[i+1:] {
		return text, "TCP" // pod/udp is a pod; names have no capitals
	}
	return text[:i], p
}

// cutPort takes :PORT off. An IPv6 address alone needs no brackets.
func cutPort(text string) (host, port string, err error) {
	if inner, ok := strings.CutPrefix(text, "["); ok {
		host, port, found := strings.Cut(inner, "]")
		if _, err := netip.ParseAddr(host); !found || err != nil {
			return "", "", errs.New(errs.Invalid, "%q: brackets hold an address, as in [fd00::1]:80", text)
		}
		if port == "" {
			return host, "", nil
		}
		number, ok := strings.CutPrefix(port, ":")
		if !ok || number == "" {
			return "", "", errs.New(errs.Invalid, "%q: after the brackets stands :PORT", text)
		}
		return host, number, nil
	}
	switch strings.Count(text, ":") {
	case 0:
		return text, "", nil
	case 1:
		host, port, _ = strings.Cut(text, ":")
		if port == "" {
			return "", "", errs.New(errs.Invalid, "%q: the port is missing after the colon", text)
		}
		return host, port, nil
	}
	if _, err := netip.ParseAddr(text); err != nil {
		return "", "", errs.New(errs.Invalid, "%q: is no address; an IPv6 address with a port is written [fd00::1]:80", text)
	}
	return text, "", nil
}

// portName is a port's name (RFC 6335, as Kubernetes has it).
var portName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func (t *Target) setPort(text, port string) error {
	n, err := strconv.ParseUint(port, 10, 16)
	switch {
	case err == nil && n > 0:
		t.Port = uint16(n)
		return nil
	case err != nil && portName.MatchString(port) && strings.ContainsAny(port, "abcdefghijklmnopqrstuvwxyz"):
		t.PortName = port
		return nil
	}
	return errs.New(errs.Invalid, "%q: the port must be a number from 1 to 65535, or a port's name", text)
}

// objectName is what Kubernetes allows as the name of an object (RFC 1123 subdomain).
var objectName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$`)

func parseEnd(text string) (End, error) {
	bare := text
	if inner, ok := strings.CutPrefix(text, "["); ok && strings.HasSuffix(inner, "]") {
		bare = strings.TrimSuffix(inner, "]")
	}
	if addr, err := netip.ParseAddr(bare); err == nil {
		if addr.Zone() != "" {
			return End{}, errs.New(errs.Invalid, "%q: an address with a zone means something on one host only", text)
		}
		return End{Kind: Address, Addr: addr.Unmap()}, nil
	}
	e := End{Name: text}
	if word, rest, ok := strings.Cut(text, "/"); ok {
		if kind, is := prefixes[word]; is {
			e.Kind, e.Name = kind, rest
		}
	}
	if e.Kind != Node {
		if ns, name, ok := strings.Cut(e.Name, "/"); ok {
			e.Namespace, e.Name = ns, name
		}
	}
	bare = e.Name
	if e.Kind == Any && e.Namespace == "" {
		bare = strings.TrimSuffix(e.Name, ".") // a complete domain name
	}
	if !objectName.MatchString(bare) || strings.Contains(text, "/") && e.Namespace == "" && e.Kind == Any ||
		e.Namespace != "" && !objectName.MatchString(e.Namespace) || strings.Contains(text, "//") || strings.HasPrefix(e.Name, "/") {
		return End{}, errs.New(errs.Invalid, "%q: is neither a name ([NAMESPACE/]NAME, pod/NAME, service/NAME, node/NAME) nor an address", text)
	}
	return e, nil
}

// String is the end as ParseFrom and ParseTarget read it.
func (e End) String() string {
	switch e.Kind {
	case Outside:
		return outsideWord
	case Address:
		return e.Addr.String()
	}
	name := e.Name
	if e.Namespace != "" {
		name = e.Namespace + "/" + name
	}
	switch e.Kind {
	case Pod:
		return "pod/" + name
	case Service:
		return "service/" + name
	case Node:
		return "node/" + name
	}
	return name
}

// String is the target as ParseTarget reads it.
func (t Target) String() string {
	if t.Scheme != "" {
		return t.Scheme + "://" + net.JoinHostPort(t.End.String(), strconv.Itoa(int(t.Port))) + t.Path
	}
	text, port := t.End.String(), t.PortName
	if t.Port != 0 {
		port = strconv.Itoa(int(t.Port))
	}
	if port != "" {
		text = net.JoinHostPort(text, port)
	}
	return text + "/" + t.Protocol
}
