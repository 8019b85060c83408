package podspec

import (
	"net/netip"
	"strings"
)

// Expand replaces $(NAME) by lookup's value, as Kubernetes does in command, args and
// env: an unknown name and an unclosed bracket stay as they are, "$$" is one "$", so
// that $$(NAME) is never replaced. What a lookup gives is not expanded again.
func Expand(s string, lookup func(name string) (string, bool)) string {
	if !strings.Contains(s, "$") {
		return s
	}
	var b strings.Builder
	for {
		i := strings.IndexByte(s, '$')
		if i < 0 || i == len(s)-1 {
			b.WriteString(s)
			return b.String()
		}
		b.WriteString(s[:i])
		rest := s[i+1:]
		switch end := strings.IndexByte(rest, ')'); {
		case rest[0] == '$':
			b.WriteByte('$')
			s = rest[1:]
		case rest[0] == '(' && end > 0:
			if v, ok := lookup(rest[1:end]); ok {
				b.WriteString(v)
			} else {
				b.WriteString("$" + rest[:end+1])
			}
			s = rest[end+1:]
		default:
			b.WriteString("$" + rest[:1])
			s = rest[1:]
		}
	}
}

// Facts are what fieldRef may ask for and only the node knows.
type Facts struct {
	PodIPs, HostIPs []netip.Addr
}

// Resolved is a container's command and environment with nothing left to expand.
type Resolved struct {
	Command, Args []string
	// Env is KEY=value, each name once, in the order of its first mention.
	Env []string
}

// Resolve expands a container of p. A variable sees those before it; command and args
// see all.
func (p Pod) Resolve(c Container, facts Facts) Resolved {
	values := map[string]string{}
	var order []string
	lookup := func(name string) (string, bool) { v, ok := values[name]; return v, ok }
	for _, e := range c.Env {
		value := Expand(e.Value, lookup)
		if e.FieldPath != "" {
			value = p.field(e.FieldPath, facts)
		}
		if _, again := values[e.Name]; !again {
			order = append(order, e.Name)
		}
		values[e.Name] = value
	}
	out := Resolved{}
	for _, name := range order {
		out.Env = append(out.Env, name+"="+values[name])
	}
	for _, w := range c.Command {
		out.Command = append(out.Command, Expand(w, lookup))
	}
	for _, w := range c.Args {
		out.Args = append(out.Args, Expand(w, lookup))
	}
	return out
}

// field is the downward API (Kubernetes, "Downward API", fieldRef); an unknown path,
// which validation refuses, is empty.
func (p Pod) field(path string, facts Facts) string {
	switch path {
	case "metadata.name":
		return p.Name
	case "metadata.namespace":
		return p.Namespace
	case "metadata.uid":
		return p.UID
	case "spec.nodeName":
		return p.NodeName
	case "spec.serviceAccountName":
		return p.ServiceAccountName
	case "status.podIP":
		return firstAddr(facts.PodIPs)
	case "status.podIPs":
		return joinAddrs(facts.PodIPs)
	case "status.hostIP":
		return firstAddr(facts.HostIPs)
	case "status.hostIPs":
		return joinAddrs(facts.HostIPs)
	}
	if key, ok := subscript(path, "metadata.labels"); ok {
		return p.Labels[key]
	}
	if key, ok := subscript(path, "metadata.annotations"); ok {
		return p.Annotations[key]
	}
	return ""
}

// subscript reads path as name['key'].
func subscript(path, name string) (key string, ok bool) {
	key, ok = strings.CutPrefix(path, name+"['")
	if !ok {
		return "", false
	}
	return strings.CutSuffix(key, "']")
}

func firstAddr(addrs []netip.Addr) string {
	if len(addrs) == 0 {
		return ""
	}
	return addrs[0].String()
}

func joinAddrs(addrs []netip.Addr) string {
	texts := make([]string, len(addrs))
	for i, a := range addrs {
		texts[i] = a.String()
	}
	return strings.Join(texts, ",")
}
