package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// process is one that the supervisor keeps, as its record says.
type process struct{ PID int }

// children are the supervisor's, by name; those that are down just now have PID 0.
func (i *instance) children(t *testing.T) map[string]process {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(i.state, "children", "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no children in %s: %v", i.state, err)
	}
	out := map[string]process{}
	for _, file := range files {
		out[strings.TrimSuffix(filepath.Base(file), ".json")] = readProcess(t, file, func(b []byte) (p process, err error) {
			var record struct{ Process process }
			err = json.Unmarshal(b, &record)
			return record.Process, err
		})
	}
	return out
}

func readProcess(t *testing.T, file string, decode func([]byte) (process, error)) process {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	p, err := decode(text)
	if err != nil {
		t.Fatalf("%s: %v: %q", file, err, text)
	}
	return p
}

func (i *instance) supervisor(t *testing.T) process {
	t.Helper()
	return readProcess(t, filepath.Join(i.state, "supervisor.lock"), func(b []byte) (p process, err error) {
		err = json.Unmarshal(b, &p)
		return p, err
	})
}

// services are the children that run on no node.
func (i *instance) services(t *testing.T) []string {
	t.Helper()
	nodes := i.nodes(t)
	return slices.DeleteFunc(slices.Sorted(maps.Keys(i.children(t))), func(name string) bool { return slices.Contains(nodes, name) })
}

func (i *instance) nodes(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, n := range i.status(t).Nodes {
		out = append(out, n.Node)
	}
	return out
}

// signal sends a signal to a child that runs, waiting for it to run, and returns who got it.
func (i *instance) signal(t *testing.T, child string, sig syscall.Signal) process {
	t.Helper()
	var p process
	await(t, child+" runs", func() error {
		if p = i.children(t)[child]; p.PID == 0 {
			return errors.New("it is down")
		}
		return syscall.Kill(p.PID, sig)
	})
	return p
}

// end kills a process, and waits until it has come to its end. A zombie of a parent that stands still has.
func (i *instance) end(t *testing.T, p process) {
	t.Helper()
	if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	await(t, fmt.Sprintf("process %d ends", p.PID), func() error {
		if at := threads(p.PID); len(at) > 1 || len(at) == 1 && !strings.HasPrefix(at[0], "Z") {
			return fmt.Errorf("its threads are %v", at)
		}
		return nil
	})
}

// kill ends a child as it stands, and waits until its successor runs.
func (i *instance) kill(t *testing.T, child string) {
	t.Helper()
	victim := i.signal(t, child, syscall.SIGKILL)
	i.succeeded(t, child, victim)
}

// succeeded waits for a child's successor.
func (i *instance) succeeded(t *testing.T, child string, before process) {
	t.Helper()
	await(t, child+" is started again", func() error {
		if now := i.children(t)[child]; now.PID == 0 || now == before {
			return fmt.Errorf("it is %+v, was %+v, whose threads are %v", now, before, threads(before.PID))
		}
		return nil
	})
}

// threads says what the threads of a process that does not end are at.
func threads(pid int) []string {
	var out []string
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	for _, task := range tasks {
		stat, _ := os.ReadFile(filepath.Join(task, "stat"))
		at, _ := os.ReadFile(filepath.Join(task, "wchan"))
		if _, rest, ok := strings.Cut(string(stat), ") "); ok {
			out = append(out, rest[:1]+" in "+string(at))
		}
	}
	return out
}

// status is what `podwire status -o json` says, as far as it is read here.
type status struct {
	Services []struct{ Service, Health string }
	Nodes    []nodeStatus
}

type nodeStatus struct {
	Node   string
	Ready  bool
	Error  string
	Status struct {
		Started              string
		Drift                []string
		Warnings             []string
		KernelObjectsWritten int `json:",string"`
		Slices               []sliceStatus
		Blocks               []struct {
			CIDR string
			Used int
		}
	}
}

type sliceStatus struct {
	Service, Refused  string
	Connected, Frozen bool
	// The ids are numbers in quotes.
	ClusterID, OfferedClusterID string
	Version                     int `json:",string"`
	OfferedVersion              int `json:",string"`
}

func (i *instance) status(t *testing.T) status {
	t.Helper()
	s, err := i.tryStatus()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (i *instance) tryStatus() (s status, err error) {
	a := i.run("status", "-o", "json")
	if a.code != 0 {
		return s, fmt.Errorf("podwire status: exit %d: %s", a.code, a.text())
	}
	return s, json.Unmarshal([]byte(a.out), &s)
}

// healthy says what is wrong with services and agents.
func (s status) healthy() error {
	for _, v := range s.Services {
		if v.Health != "SERVING" {
			return fmt.Errorf("%s is %s", v.Service, v.Health)
		}
	}
	for _, n := range s.Nodes {
		switch st := n.Status; {
		case n.Error != "":
			return fmt.Errorf("%s: %s", n.Node, n.Error)
		case !n.Ready:
			return fmt.Errorf("%s is not ready", n.Node)
		case len(st.Drift) > 0:
			return fmt.Errorf("%s: drift: %v", n.Node, st.Drift)
		case len(st.Slices) == 0:
			return fmt.Errorf("%s follows nobody", n.Node)
		default:
			for _, v := range st.Slices {
				if !v.Connected || v.Refused != "" {
					return fmt.Errorf("%s: %s: connected %v, refused %q", n.Node, v.Service, v.Connected, v.Refused)
				}
			}
		}
	}
	return nil
}

// whole waits until every service serves and every agent follows every service.
func (i *instance) whole(t *testing.T) status {
	t.Helper()
	var s status
	await(t, "everything is healthy", func() (err error) {
		if s, err = i.tryStatus(); err == nil {
			err = s.healthy()
		}
		return err
	})
	return s
}

// written are the kernel objects that each agent has written since it started.
func (s status) written() map[string]int {
	out := map[string]int{}
	for _, n := range s.Nodes {
		out[n.Node] = n.Status.KernelObjectsWritten
	}
	return out
}

// rulesets are the tables of all nodes; see ruleset.
func (i *instance) rulesets(t *testing.T) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	for _, node := range i.nodes(t) {
		out[node] = i.ruleset(t, node)
	}
	return out
}

// ruleset is a node's table: chains, sets and maps, each on one line, sorted, with the elements sorted in it. Not in it are
// counters, and what packets write: who is held to which endpoint.
func (i *instance) ruleset(t *testing.T, node string) []string {
	t.Helper()
	return canonical(i.must(t, "exec", "--node", node, "--", "nft", "-s", "list", "table", "inet", "podwire"))
}

func canonical(listing string) []string {
	var out []string
	for block := range strings.SplitSeq(listing, "\n\t}") {
		block = strings.Join(strings.Fields(block), " ")
		head, elements, found := strings.Cut(block, "elements = {")
		if strings.Contains(head, "affinity4 {") || strings.Contains(head, "affinity6 {") {
			continue
		}
		if found {
			list := strings.Split(strings.TrimSuffix(strings.TrimSpace(elements), "}"), ",")
			for n := range list {
				list[n] = strings.TrimSpace(list[n])
			}
			slices.Sort(list)
			block = head + strings.Join(list, ", ")
		}
		out = append(out, block)
	}
	slices.Sort(out)
	return out
}

// spare begins what may be left in a table for later use when no Service uses it any more: the programs of endpoint counts
// and affinities.
var spare = regexp.MustCompile(`^(chain (count|affinity)-|map (programs|choices) )`)

// withoutSpare leaves out of rulesets what need not be in one that is built from nothing.
func withoutSpare(sets map[string][]string) map[string][]string {
	out := map[string][]string{}
	for node, lines := range sets {
		out[node] = slices.DeleteFunc(slices.Clone(lines), spare.MatchString)
	}
	return out
}

// identified are the maps that hold the ids of endpoints, which are not used again for a while.
var identified = regexp.MustCompile(`^map (endpoints4|endpoints6|slots) `)

// withoutEndpoints leaves out of rulesets which id an endpoint has. What remains says how many each Service has.
func withoutEndpoints(sets map[string][]string) map[string][]string {
	out := map[string][]string{}
	for node, lines := range sets {
		out[node] = slices.DeleteFunc(slices.Clone(lines), identified.MatchString)
	}
	return out
}

// members are the services that have a Pod, since they exchange packets with pods.
func (i *instance) members(t *testing.T) []string {
	t.Helper()
	var list struct {
		Items []struct {
			Metadata struct{ Annotations map[string]string }
		}
	}
	i.get(t, &list, "pods", "-n", "kube-system")
	var out []string
	for _, p := range list.Items {
		if service := p.Metadata.Annotations["podwire.dev/member"]; service != "" {
			out = append(out, service)
		}
	}
	return out
}

// sameRulesets says in which lines rulesets differ.
func sameRulesets(t *testing.T, when string, before, after map[string][]string) {
	t.Helper()
	if err := differences(before, after); err != nil {
		t.Errorf("%s: %v", when, err)
	}
}

func differences(before, after map[string][]string) error {
	var out []error
	for _, node := range slices.Sorted(maps.Keys(before)) {
		lost := slices.DeleteFunc(slices.Clone(before[node]), func(l string) bool { return slices.Contains(after[node], l) })
		found := slices.DeleteFunc(slices.Clone(after[node]), func(l string) bool { return slices.Contains(before[node], l) })
		if len(lost)+len(found) > 0 || len(before[node]) < 50 {
			out = append(out, fmt.Errorf("the ruleset of %s differs (%d and %d lines):\n- %s\n+ %s", node, len(before[node]), len(after[node]),
				strings.Join(lost, "\n- "), strings.Join(found, "\n+ ")))
		}
	}
	return errors.Join(out...)
}
