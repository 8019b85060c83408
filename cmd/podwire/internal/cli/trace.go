package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"podwire.dev/cmd/podwire/internal/session"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/manifest"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	tracev1 "podwire.dev/proto/podwire/trace/v1"
)

func (a *app) traceCommand() *cobra.Command {
	var namespace, output string
	cmd := &cobra.Command{
		Use:   "trace KIND/NAME | TRACE-ID",
		Short: "show the hops of an object's last change, up to the kernel commit on each node",
		Args:  cobra.ExactArgs(1),
	}
	namespaceFlag(cmd, &namespace)
	cmd.Flags().StringVarP(&output, "output", "o", "", "json, or a tree")
	cmd.RunE = func(cmd *cobra.Command, args []string) error { // not traced: it would be the newest trace itself
		return a.trace(cmd.Context(), args[0], namespace, output)
	}
	return cmd
}

func (a *app) trace(ctx context.Context, what, namespace, output string) error {
	if output != "" && output != "json" {
		return session.Usage("-o must be json, not %q", output)
	}
	id, object, err := a.traceID(ctx, what, namespace)
	if err != nil {
		return err
	}
	kept, err := a.collect(ctx, id)
	if err != nil {
		return err
	}
	if object != "" {
		kept.hops = concerning(kept.hops, object)
	}
	notKept := kept.missing()
	if output == "json" {
		return a.traceJSON(id, kept.hops, notKept)
	}
	fmt.Fprintf(a.out, "trace %s\n", id)
	for _, line := range tree(kept.hops) {
		fmt.Fprintln(a.out, line)
	}
	for _, line := range notKept {
		fmt.Fprintln(a.out, "not kept: "+line)
	}
	return nil
}

// traceJSON prints hops as TraceService has them, with what is missing beside them.
func (a *app) traceJSON(id string, hops []*tracev1.Hop, notKept []string) error {
	raw, err := manifest.EncodeMessage(&tracev1.GetHopsResponse{Hops: hops}, manifest.JSON)
	if err != nil {
		return err
	}
	var parts struct {
		Hops []json.RawMessage `json:"hops"`
	}
	if err := json.Unmarshal(raw, &parts); err != nil {
		return errs.WrapAs(errs.Internal, err, "trace")
	}
	doc := struct {
		TraceID string            `json:"traceId"`
		Hops    []json.RawMessage `json:"hops"`
		NotKept []string          `json:"notKept"`
	}{id, append([]json.RawMessage{}, parts.Hops...), append([]string{}, notKept...)}
	enc := json.NewEncoder(a.out)
	enc.SetIndent("", "    ")
	enc.SetEscapeHTML(false)
	return errs.WrapAs(errs.Internal, enc.Encode(doc), "trace")
}

// traceID is the trace that wrote an object's present state, and the object's name in hops; empty for a trace id.
func (a *app) traceID(ctx context.Context, what, namespace string) (id, object string, err error) {
	if len(what) == 32 && strings.Trim(what, "0123456789abcdef") == "" {
		return what, "", nil
	}
	k, name, err := a.reference(what)
	if err != nil {
		return "", "", err
	}
	c := a.connections()
	defer c.close()
	ctx, cancel := bound(ctx)
	defer cancel()
	ns := namespaceOf(k, namespace)
	parent, err := c.objects().Traceparent(ctx, k, ns, name)
	if err != nil {
		return "", "", err
	}
	parts := strings.Split(parent, "-")
	if len(parts) != 4 {
		return "", "", errs.New(errs.NotFound, "%s: its last change was not traced", label(k, name))
	}
	return parts[1], hopObject(k, ns, name), nil
}

// hopObject names an object as hops do.
func hopObject(k manifest.Kind, namespace, name string) string {
	if namespace == "" {
		return k.StoreKind() + "/" + name
	}
	return k.StoreKind() + "/" + namespace + "/" + name
}

// concerning leaves the hops of one object's change, with what led to them and what followed: one command may have
// changed many objects in one trace.
func concerning(hops []*tracev1.Hop, object string) []*tracev1.Hop {
	byID, children := map[string]*tracev1.Hop{}, map[string][]*tracev1.Hop{}
	for _, h := range hops {
		byID[h.GetSpanId()] = h
		children[h.GetParentSpanId()] = append(children[h.GetParentSpanId()], h)
	}
	keep := map[string]bool{}
	var descend func(h *tracev1.Hop)
	descend = func(h *tracev1.Hop) {
		keep[h.GetSpanId()] = true
		for _, child := range children[h.GetSpanId()] {
			descend(child)
		}
	}
	for _, h := range hops {
		if h.GetObject() != object {
			continue
		}
		// The call that wrote it, and whatever else that call did.
		top := h
		for parent := byID[top.GetParentSpanId()]; parent != nil && (parent.GetObject() == "" || parent.GetObject() == object); parent = byID[top.GetParentSpanId()] {
			top = parent
		}
		if !keep[top.GetSpanId()] {
			descend(top)
		}
		for parent := byID[top.GetParentSpanId()]; parent != nil; parent = byID[parent.GetParentSpanId()] {
			keep[parent.GetSpanId()] = true
		}
	}
	return slices.DeleteFunc(hops, func(h *tracev1.Hop) bool { return !keep[h.GetSpanId()] })
}

// memory is what every live process keeps of one trace.
type memory struct {
	hops []*tracev1.Hop
	// oldest is, by process that answered, the Unix time in nanoseconds of the oldest hop of any trace that it keeps.
	oldest map[string]int64
	agents []string
	silent []string
}

// collect asks every live process for the hops of a trace. The hops are ordered by process, and by time within each.
func (a *app) collect(ctx context.Context, id string) (memory, error) {
	ctx, cancel := bound(ctx)
	defer cancel()
	processes, err := a.Processes(ctx)
	if err != nil {
		return memory{}, err
	}
	kept := memory{oldest: map[string]int64{}}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, p := range processes {
		wg.Go(func() {
			resp, err := a.hopsOf(ctx, p, id)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				kept.silent = append(kept.silent, fmt.Sprintf("%s %s does not answer: %v", p.GetService(), p.GetName(), err))
				return
			}
			kept.hops = append(kept.hops, resp.GetHops()...)
			kept.oldest[resp.GetProcess()] = resp.GetOldestKeptUnixNano()
			if p.GetService() == "nodeagent" {
				kept.agents = append(kept.agents, resp.GetProcess())
			}
		})
	}
	wg.Wait()
	slices.SortFunc(kept.hops, func(a, b *tracev1.Hop) int {
		return cmp.Or(cmp.Compare(a.GetProcess(), b.GetProcess()), cmp.Compare(a.GetStartUnixNano(), b.GetStartUnixNano()),
			cmp.Compare(a.GetSpanId(), b.GetSpanId()))
	})
	slices.Sort(kept.agents)
	slices.Sort(kept.silent)
	return kept, nil
}

// missing says what the hops leave open: processes that did not answer, and nodes without a hop of a change that reached
// others. Whether such a node's agent was replaced meanwhile or the change did not concern it is not guessed.
func (m memory) missing() []string {
	if len(m.hops) == 0 {
		return append([]string{"no live process remembers this trace (each keeps its last 10,000 hops)"}, m.silent...)
	}
	has := map[string]bool{}
	pushed := false
	for _, h := range m.hops {
		has[h.GetProcess()] = true
		pushed = pushed || slices.Contains(m.agents, h.GetProcess())
	}
	var out []string
	for _, name := range m.agents {
		if pushed && !has[name] {
			since := "it keeps nothing yet"
			if at := m.oldest[name]; at != 0 {
				since = "it keeps what happened since " + time.Unix(0, at).UTC().Format(time.RFC3339)
			}
			out = append(out, fmt.Sprintf("%s has no hop of it (%s): it did not concern the node, or its agent was replaced", name, since))
		}
	}
	return append(out, m.silent...)
}

func (a *app) hopsOf(ctx context.Context, p *clusterv1.Process, id string) (*tracev1.GetHopsResponse, error) {
	conn, err := a.DialProcess(ctx, p)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return tracev1.NewTraceServiceClient(conn).GetHops(ctx, &tracev1.GetHopsRequest{TraceId: id})
}

// tree draws the hops of one trace, each under its parent. A hop whose parent nobody keeps stands at the left: what came
// before it is not kept, or belongs to a process that has ended, such as the CLI.
func tree(hops []*tracev1.Hop) []string {
	children := map[string][]*tracev1.Hop{}
	known := map[string]bool{}
	for _, h := range hops {
		known[h.GetSpanId()] = true
	}
	for _, h := range hops {
		parent := h.GetParentSpanId()
		if !known[parent] {
			parent = ""
		}
		children[parent] = append(children[parent], h)
	}
	var lines []string
	var draw func(parent, indent string)
	draw = func(parent, indent string) {
		list := children[parent]
		slices.SortStableFunc(list, order)
		for i, h := range list {
			branch, next := "├─ ", "│  "
			if i == len(list)-1 {
				branch, next = "└─ ", "   "
			}
			if parent == "" && indent == "" {
				branch, next = "", ""
			}
			lines = append(lines, indent+branch+hopLine(h))
			draw(h.GetSpanId(), indent+next+rootIndent(parent, indent))
		}
	}
	draw("", "")
	return lines
}

// rootIndent moves the children of a root in.
func rootIndent(parent, indent string) string {
	if parent == "" && indent == "" {
		return "  "
	}
	return ""
}

// order sorts siblings by revision, process and start: wall clocks are compared within one process only.
func order(a, b *tracev1.Hop) int {
	if a.GetProcess() == b.GetProcess() {
		return cmp.Or(cmp.Compare(a.GetStartUnixNano(), b.GetStartUnixNano()), cmp.Compare(a.GetName(), b.GetName()))
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.GetRevision(), b.GetRevision()), cmp.Compare(a.GetProcess(), b.GetProcess()))
}

// rank puts calls before what followed from them.
func rank(h *tracev1.Hop) int {
	switch {
	case strings.Contains(h.GetName(), "/"):
		return 0
	case h.GetName() == "plan":
		return 1
	}
	return 2
}

func hopLine(h *tracev1.Hop) string {
	line := fmt.Sprintf("%-10s %s", h.GetProcess(), h.GetName())
	if h.GetObject() != "" {
		line += " " + h.GetObject()
	}
	if h.GetRevision() != 0 {
		line += fmt.Sprintf(" @%d", h.GetRevision())
	}
	line += "  " + short(time.Duration(h.GetDurationNanos()))
	if h.GetError() != "" {
		line += "  FAILED: " + strings.ReplaceAll(h.GetError(), "\n", "; ")
	}
	return line
}

// short prints a duration with three digits.
func short(d time.Duration) string {
	switch {
	case d < time.Microsecond:
		return d.String()
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return d.Round(10 * time.Microsecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}
