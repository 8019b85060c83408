package archtest

import (
	"go/ast"
	"go/token"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// doorRules makes a rule of each door, so that an exception opens one door and no other.
func doorRules(l *Layout) []Rule {
	var out []Rule
	for _, door := range l.Doors {
		out = append(out, Rule{
			Name:  door.Rule,
			Says:  "Only " + strings.Join(door.Rooms, ", ") + " reach " + door.Name + ".",
			Check: func(t *Tree, _ *Layout) Result { return oneDoor(t, &door) },
		})
	}
	return out
}

var outsideRules = []Rule{
	{
		Name:  "keys",
		Says:  "Keys of etcd are spelled in internal/store only.",
		Check: keysInStore,
	},
	{
		Name:  "writers",
		Says:  "A package that writes a kind of kernel object names it in its package documentation.",
		Check: writersDeclared,
	},
}

// oneDoor counts every touch of the outside thing as a subject, so that a door that nobody uses fails.
func oneDoor(t *Tree, door *Door) Result {
	var c collector
	for _, p := range t.Packages {
		if below(p.Dir, "proto") {
			continue
		}
		open := below(p.Dir, door.Rooms...)
		for _, f := range p.Written() {
			before := len(c.Findings)
			c.Subjects += throughDoor(&c, f, door)
			if open {
				c.Findings = c.Findings[:before]
			}
		}
	}
	return c.Result
}

// throughDoor reports every touch of a door's outside thing in a file, and returns their number.
func throughDoor(c *collector, f *File, door *Door) int {
	touches := 0
	rooms := strings.Join(door.Rooms, ", ")
	for _, imported := range f.Imports() {
		if below(imported.Path, door.Imports...) {
			touches++
			c.at(f, imported.Line, "", "%s imports %s: %s is reached through %s only", f.Package.Dir, imported.Path, door.Name, rooms)
		}
	}
	for _, importPath := range slices.Sorted(maps.Keys(door.Uses)) {
		f.uses(importPath, func(sel *ast.SelectorExpr) {
			if slices.Contains(door.Uses[importPath], sel.Sel.Name) {
				touches++
				c.at(f, f.Line(sel), f.enclosing(sel), "%s uses %s.%s: %s is reached through %s only",
					f.Package.Dir, importPath, sel.Sel.Name, door.Name, rooms)
			}
		})
	}
	return touches
}

// keyRoot begins every key that Podwire keeps in etcd.
const keyRoot = "/podwire/"

func keysInStore(t *Tree, _ *Layout) Result {
	var c collector
	for _, p := range t.Packages {
		for _, f := range p.Written() {
			ast.Inspect(f.Syntax, func(n ast.Node) bool {
				lit, ok := n.(*ast.BasicLit)
				if !ok || lit.Kind != token.STRING {
					return true
				}
				value, err := strconv.Unquote(lit.Value)
				if err != nil || !strings.HasPrefix(value, keyRoot) {
					return true
				}
				c.Subjects++
				if !below(p.Dir, "internal/store") && !below(p.Dir, "internal/archtest") {
					c.at(f, f.Line(lit), f.enclosing(lit), "spells the etcd key %q: ask internal/store for it", value)
				}
				return true
			})
		}
	}
	return c.Result
}

// kernelObject is a kind of object in the kernel, what writes it, and the word that the package documentation of a
// writer must hold.
type kernelObject struct {
	word string
	// calls are methods and functions of the kernel libraries that write it.
	calls []string
	// values are names of internal/fabric/rtnl of which a writer makes its requests.
	values []string
}

var kernelObjects = []kernelObject{
	{
		word:   "link",
		calls:  []string{"LinkAdd", "LinkDel", "LinkModify", "LinkSetMaster", "LinkSetMTU", "LinkSetName", "LinkSetNsFd", "LinkSetUp"},
		values: []string{"AddVeth", "DeleteLink", "SetAlias", "SetUp"},
	},
	{
		word:   "vxlan",
		values: []string{"AddVXLAN"},
	},
	{
		word:   "address",
		calls:  []string{"AddrAdd", "AddrDel", "AddrReplace"},
		values: []string{"Address"},
	},
	{
		word:   "route",
		calls:  []string{"RouteAdd", "RouteAppend", "RouteChange", "RouteDel", "RouteReplace"},
		values: []string{"Route"},
	},
	{
		word:   "neighbour",
		calls:  []string{"NeighAdd", "NeighAppend", "NeighDel", "NeighSet"},
		values: []string{"Neighbour"},
	},
	{
		word:   "forwarding",
		values: []string{"Forwarding"},
	},
	{
		word: "conntrack",
		calls: []string{
			"ConntrackCreate", "ConntrackDeleteFilter", "ConntrackDeleteFilters", "ConntrackTableFlush", "ConntrackUpdate",
		},
	},
	{
		word:  "nftables",
		calls: []string{"AddChain", "AddFlowtable", "AddRule", "AddSet", "AddTable", "DelTable", "SetAddElements", "SetDeleteElements"},
	},
	{
		word:  "namespace",
		calls: []string{"DeleteNamed", "NewNamed"},
	},
}

// kernelLibraries are the imports without which a call of the names above means something else.
var kernelLibraries = []string{
	"github.com/google/nftables", "github.com/vishvananda/netlink", "github.com/vishvananda/netns",
}

func writersDeclared(t *Tree, l *Layout) Result {
	var c collector
	for _, p := range t.Packages {
		written := map[string]Finding{}
		for _, f := range p.Written() {
			note := func(n ast.Node, object kernelObject, name string) {
				if _, seen := written[object.word]; !seen {
					written[object.word] = Finding{Path: f.Path, Line: f.Line(n), Decl: f.enclosing(n), Message: name}
				}
			}
			eachKernelWrite(f, l, note)
		}
		doc := strings.ToLower(packageDoc(p))
		for _, word := range slices.Sorted(maps.Keys(written)) {
			c.Subjects++
			if finding := written[word]; !strings.Contains(doc, word) {
				finding.Message = "writes with " + finding.Message + ", but the documentation of " + p.Dir + " does not say that it writes any " + word
				c.Findings = append(c.Findings, finding)
			}
		}
	}
	return c.Result
}

// eachKernelWrite calls note for each use of a name that writes to the kernel.
func eachKernelWrite(f *File, l *Layout, note func(n ast.Node, object kernelObject, name string)) {
	f.uses(l.Module+"/internal/fabric/rtnl", func(sel *ast.SelectorExpr) {
		for _, object := range kernelObjects {
			if slices.Contains(object.values, sel.Sel.Name) {
				note(sel, object, "rtnl."+sel.Sel.Name)
			}
		}
	})
	if !slices.ContainsFunc(f.Imports(), func(i Import) bool { return slices.Contains(kernelLibraries, i.Path) }) {
		return
	}
	ast.Inspect(f.Syntax, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		if sel, ok := call.Fun.(*ast.SelectorExpr); ok {
			for _, object := range kernelObjects {
				if slices.Contains(object.calls, sel.Sel.Name) {
					note(call, object, sel.Sel.Name)
				}
			}
		}
		return true
	})
}
