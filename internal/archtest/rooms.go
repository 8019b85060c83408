package archtest

import (
	"go/ast"
	"path"
	"slices"
	"strings"
)

var roomRules = []Rule{
	{
		Name:  "services",
		Says:  "A service never imports another service: they meet in proto/ and in etcd.",
		Check: servicesApart,
	},
	{
		Name:  "foundation",
		Says:  "internal/ and proto/ never import services/ or cmd/.",
		Check: foundationBelow,
	},
	{
		Name:  "app",
		Says:  "A service's app is imported only by its main, cmd/podwire and test/stack.",
		Check: appDoor,
	},
	{
		Name:  "flow",
		Says:  "Inside a service: main -> app -> api and feed, which do not know each other; nothing imports back.",
		Check: flowForward,
	},
	{
		Name:  "pure",
		Says:  "A pure core imports the standard library, purer cores and plain object messages, and reads no clock.",
		Check: pureCores,
	},
	{
		Name:  "test-support",
		Says:  "What imports testing is part of the tests: the product never imports it.",
		Check: supportApart,
	},
	{
		Name:  "built",
		Says:  "Every pure core of the plan exists, so that the rule about it judges something.",
		Check: coresExist,
	},
}

// ours returns the directory of an import of this module.
func ours(l *Layout, importPath string) (string, bool) {
	return strings.CutPrefix(importPath, l.Module+"/")
}

// service returns the service to which a directory belongs, or "".
func service(dir string) string {
	parts := strings.Split(dir, "/")
	if len(parts) < 2 || parts[0] != "services" {
		return ""
	}
	return parts[1]
}

func servicesApart(t *Tree, l *Layout) Result {
	var c collector
	for _, p := range t.Packages {
		own := service(p.Dir)
		if own == "" {
			continue
		}
		c.Subjects++
		for _, f := range p.Files {
			for _, imported := range f.Imports() {
				dir, mine := ours(l, imported.Path)
				if other := service(dir); mine && other != "" && other != own {
					c.at(f, imported.Line, "", "service %s imports %s of service %s: meet in proto/ or in etcd", own, dir, other)
				}
			}
		}
	}
	return c.Result
}

func foundationBelow(t *Tree, l *Layout) Result {
	var c collector
	for _, p := range t.Packages {
		if !below(p.Dir, "internal", "proto") {
			continue
		}
		c.Subjects++
		for _, f := range p.Files {
			for _, imported := range f.Imports() {
				if dir, mine := ours(l, imported.Path); mine && below(dir, "services", "cmd", "test") {
					c.at(f, imported.Line, "", "%s imports %s, which stands above it", p.Dir, dir)
				}
			}
		}
	}
	return c.Result
}

func appDoor(t *Tree, l *Layout) Result {
	var c collector
	for _, p := range t.Packages {
		for _, f := range p.Files {
			for _, imported := range f.Imports() {
				dir, mine := ours(l, imported.Path)
				if !mine || !below(dir, "services/*/app") {
					continue
				}
				c.Subjects++
				owner := path.Dir(dir)
				own := p.Dir == owner || p.Dir == dir
				if !own && !below(p.Dir, l.AppUsers...) {
					c.at(f, imported.Line, "", "%s imports %s: only %s, %s may", p.Dir, dir, owner, strings.Join(l.AppUsers, ", "))
				}
			}
		}
	}
	return c.Result
}

func flowForward(t *Tree, l *Layout) Result {
	var c collector
	for _, p := range t.Packages {
		own := service(p.Dir)
		if own == "" {
			continue
		}
		c.Subjects++
		root := "services/" + own
		for _, f := range p.Written() {
			for _, imported := range f.Imports() {
				dir, mine := ours(l, imported.Path)
				if !mine {
					continue
				}
				switch {
				case p.Dir == root && dir != root+"/app" && dir != "internal/daemon":
					c.at(f, imported.Line, "", "a service's main imports its app and internal/daemon, not %s: wiring belongs to the app", dir)
				case below(p.Dir, root+"/internal/api") && below(dir, root+"/internal/feed"),
					below(p.Dir, root+"/internal/feed") && below(dir, root+"/internal/api"):
					c.at(f, imported.Line, "", "api and feed meet in the store, not by import")
				case below(p.Dir, root+"/internal") && below(dir, root+"/app"):
					c.at(f, imported.Line, "", "%s imports its app: the flow only goes forward", p.Dir)
				}
			}
		}
	}
	return c.Result
}

// impure are standard packages that reach outside the process, or whose answer differs between two runs.
var impure = []string{
	"context", "crypto/rand", "crypto/tls", "database", "flag", "hash/maphash", "io/ioutil", "log", "math/rand", "net", "os",
	"os/exec", "path/filepath", "plugin", "runtime", "syscall", "testing", "unsafe",
}

// pureAfterAll are packages below an impure one that only compute.
var pureAfterAll = []string{"net/netip", "net/url"}

// clock are the names of package time that read the clock or wait for it.
var clock = []string{"After", "AfterFunc", "NewTicker", "NewTimer", "Now", "Since", "Sleep", "Tick", "Until"}

// console are the names of package fmt that write to the process's output or read its input.
var console = []string{"Print", "Printf", "Println", "Scan", "Scanf", "Scanln"}

// pureCores judges the packages of a core one by one. That suffices for "transitively": a pure core may import no
// other package of ours than a pure core or plain data, which are judged themselves or hold no code of ours.
func pureCores(t *Tree, l *Layout) Result {
	var c collector
	for _, p := range t.Packages {
		if !below(p.Dir, l.Pure...) {
			continue
		}
		c.Subjects++
		for _, f := range p.Written() {
			for _, imported := range f.Imports() {
				if complaint := impureImport(l, imported.Path); complaint != "" {
					c.at(f, imported.Line, "", "pure core imports %s: %s", imported.Path, complaint)
				}
			}
			forbidUses(&c, f, "time", clock, "a pure core takes the time as an argument")
			forbidUses(&c, f, "fmt", console, "a pure core returns what it has to say")
		}
	}
	return c.Result
}

func impureImport(l *Layout, importPath string) string {
	if dir, mine := ours(l, importPath); mine {
		if below(dir, l.Pure...) || below(importPath, l.PlainData...) {
			return ""
		}
		return "of this module it may import pure cores and plain object messages only"
	}
	if first, _, _ := strings.Cut(importPath, "/"); strings.Contains(first, ".") {
		if below(importPath, l.PlainData...) {
			return ""
		}
		return "other people's code is not pure by contract"
	}
	if below(importPath, impure...) && !slices.Contains(pureAfterAll, importPath) {
		return "it reaches outside the computation; take what you need as an argument"
	}
	return ""
}

func forbidUses(c *collector, f *File, importPath string, names []string, complaint string) {
	f.uses(importPath, func(sel *ast.SelectorExpr) {
		if slices.Contains(names, sel.Sel.Name) {
			c.at(f, f.Line(sel), f.enclosing(sel), "%s.%s: %s", path.Base(importPath), sel.Sel.Name, complaint)
		}
	})
}

func supportApart(t *Tree, l *Layout) Result {
	var c collector
	support := map[string]bool{}
	for _, p := range t.Packages {
		if p.Support {
			c.Subjects++
			support[p.Dir] = true
		}
	}
	for _, p := range t.Packages {
		for _, f := range p.Written() {
			for _, imported := range f.Imports() {
				if dir, mine := ours(l, imported.Path); mine && support[dir] {
					c.at(f, imported.Line, "", "%s imports %s, which is for tests", p.Dir, dir)
				}
			}
		}
	}
	return c.Result
}

func coresExist(t *Tree, l *Layout) Result {
	var c collector
	for _, room := range l.Pure {
		c.Subjects++
		later := slices.Contains(l.NotBuilt, room)
		switch exists := t.Exists(room); {
		case !exists && !later:
			c.in(room, "a pure core of the plan does not exist: build it, or take it out of the layout")
		case exists && later:
			c.in(room, "a pure core exists that the layout still lists under NotBuilt: delete that line")
		}
	}
	for _, room := range l.NotBuilt {
		if !slices.Contains(l.Pure, room) {
			c.in(room, "NotBuilt names a room that is not in Pure")
		}
	}
	return c.Result
}
