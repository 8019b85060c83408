package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"

	"podwire.dev/cmd/podwire/internal/cli/describe"
	"podwire.dev/cmd/podwire/internal/cli/objects"
	"podwire.dev/cmd/podwire/internal/session"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/manifest"
	"podwire.dev/internal/rpc"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	nodeagentv1 "podwire.dev/proto/podwire/nodeagent/v1"
)

func (a *app) statusCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "status", Short: "show services, nodes, fabric members, who is behind, where a kernel differs, and what leads nowhere", Args: cobra.NoArgs,
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "json, or text")
	cmd.RunE = a.traced("status", func(ctx context.Context, _ []string) error {
		if output != "" && output != "json" {
			return session.Usage("-o must be json, not %q", output)
		}
		return a.status(ctx, output)
	})
	return cmd
}

// serviceState is one replica as status shows it.
type serviceState struct {
	process *clusterv1.Process
	health  string
}

// nodeState is one node as status shows it.
type nodeState struct {
	process *clusterv1.Process
	status  *nodeagentv1.StatusResponse
	err     error
}

func (a *app) status(ctx context.Context, output string) error {
	ctx, cancel := bound(ctx)
	defer cancel()
	processes, err := a.Processes(ctx)
	if err != nil {
		return err
	}
	var found findings
	var looking sync.WaitGroup
	looking.Go(func() { found = a.find(ctx) })
	services, nodes := a.askAll(ctx, processes)
	progress, err := a.watermarks(ctx)
	looking.Wait()
	if err != nil {
		return err
	}
	if services, nodes, err = a.absent(ctx, services, nodes, progress); err != nil {
		return err
	}
	if output == "json" {
		return a.statusJSON(services, nodes, progress, found)
	}
	return writeStatus(a.out, services, nodes, progress, found)
}

// absent adds what ought to be there and is not: required services without a replica, and Nodes without an agent.
func (a *app) absent(
	ctx context.Context, services []serviceState, nodes []nodeState, progress []*clusterv1.ServiceProgress,
) ([]serviceState, []nodeState, error) {
	for _, p := range progress {
		if !slices.ContainsFunc(services, func(s serviceState) bool { return s.process.GetService() == p.GetService() }) {
			services = append(services, serviceState{&clusterv1.Process{Service: p.GetService(), Name: none}, "no live replica"})
		}
	}
	k, err := a.kind("node")
	if err != nil {
		return nil, nil, err
	}
	c := a.connections()
	defer c.close()
	list, _, err := c.objects().List(ctx, k, objects.Selection{})
	if err != nil {
		return nil, nil, err
	}
	for _, m := range list {
		name := m.GetMetadata().GetName()
		if !slices.ContainsFunc(nodes, func(n nodeState) bool { return n.process.GetName() == name }) {
			gone := errs.New(errs.Unavailable, "cluster knows no agent of it that is alive")
			nodes = append(nodes, nodeState{process: &clusterv1.Process{Service: "nodeagent", Name: name}, err: gone})
		}
	}
	slices.SortFunc(services, func(x, y serviceState) int {
		return cmp.Or(strings.Compare(x.process.GetService(), y.process.GetService()), strings.Compare(x.process.GetName(), y.process.GetName()))
	})
	slices.SortFunc(nodes, func(x, y nodeState) int { return strings.Compare(x.process.GetName(), y.process.GetName()) })
	return services, nodes, nil
}

// askAll asks every process how it fares, all at once.
func (a *app) askAll(ctx context.Context, processes []*clusterv1.Process) ([]serviceState, []nodeState) {
	var services []serviceState
	var nodes []nodeState
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, p := range processes {
		wg.Go(func() {
			if p.GetService() == "nodeagent" {
				st, err := a.agentStatus(ctx, p)
				mu.Lock()
				defer mu.Unlock()
				nodes = append(nodes, nodeState{p, st, err})
				return
			}
			health := a.health(ctx, p)
			mu.Lock()
			defer mu.Unlock()
			services = append(services, serviceState{p, health})
		})
	}
	wg.Wait()
	return services, nodes
}

func (a *app) agentStatus(ctx context.Context, p *clusterv1.Process) (*nodeagentv1.StatusResponse, error) {
	conn, err := a.DialProcess(ctx, p)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return nodeagentv1.NewAgentServiceClient(conn).Status(ctx, &nodeagentv1.StatusRequest{})
}

func (a *app) health(ctx context.Context, p *clusterv1.Process) string {
	conn, err := a.DialProcess(ctx, p, rpc.WithoutHealthCheck())
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	resp, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(false))
	if err != nil {
		return "does not answer: " + err.Error()
	}
	return resp.GetStatus().String()
}

func (a *app) watermarks(ctx context.Context) ([]*clusterv1.ServiceProgress, error) {
	c := a.connections()
	defer c.close()
	var last *clusterv1.WaitResponse
	err := a.waitOnce(ctx, c, 0, func(r *clusterv1.WaitResponse) { last = r })
	return last.GetServices(), err
}

func writeStatus(w io.Writer, services []serviceState, nodes []nodeState, progress []*clusterv1.ServiceProgress, found findings) error {
	tw := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	fmt.Fprintln(tw, "SERVICE\tREPLICA\tHEALTH\tWATERMARK\tBEHIND")
	for _, s := range services {
		watermark, behind := "-", none
		for _, p := range progress {
			if p.GetService() == s.process.GetService() {
				watermark, behind = fmt.Sprint(p.GetWatermark()), or(laggardNames(p), none)
			}
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", s.process.GetService(), s.process.GetName(), s.health, watermark, behind)
	}
	fmt.Fprintln(tw, "\nNODE\tREADY\tHELD\tPODS\tADDRESSES\tKERNEL WRITES\tDRIFT")
	for _, n := range nodes {
		if n.err != nil {
			fmt.Fprintf(tw, "%s\t%s\tdoes not answer\t-\t-\t-\t-\n", n.process.GetName(), yesNo(n.process.GetReady()))
			continue
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d\t%s\t%d\t%s\n", n.process.GetName(), yesNo(n.process.GetReady()), heldText(n.status),
			podCount(n.status), addressText(n.status), n.status.GetKernelWrites(), or(driftText(n.status), none))
	}
	if len(found.members) > 0 {
		fmt.Fprintln(tw, "\nMEMBER\tREADY\tSERVICE\tADDRESSES\tUNDERLAY")
	}
	for _, m := range found.members {
		fabric, underlay := memberAddresses(m)
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", m.GetMetadata().GetName(), yesNo(describe.Ready(m)), describe.Member(m),
			or(strings.Join(fabric, ","), none), or(strings.Join(underlay, ","), none))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, n := range nodes {
		if n.err != nil {
			fmt.Fprintf(w, "%s: does not answer: %v\n", n.process.GetName(), n.err)
		}
		for _, line := range remarks(n.status) {
			fmt.Fprintf(w, "%s: %s\n", n.process.GetName(), line)
		}
	}
	for _, m := range found.members {
		if why := notReady(m); why != "" {
			fmt.Fprintf(w, "%s: not ready: %s\n", m.GetMetadata().GetName(), why)
		}
	}
	for _, line := range found.lines() {
		fmt.Fprintf(w, "warning: %s\n", line)
	}
	return nil
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func laggardNames(p *clusterv1.ServiceProgress) string {
	var out []string
	for _, l := range p.GetLaggards() {
		text := fmt.Sprintf("%s at %d", l.GetNode(), l.GetHeld())
		if l.GetRefused() != "" {
			text += " (refused)"
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}

// heldText lists the version of each slice.
func heldText(st *nodeagentv1.StatusResponse) string {
	var out []string
	for _, s := range st.GetSlices() {
		mark := ""
		if s.GetFrozen() {
			mark = " FROZEN"
		} else if !s.GetConnected() {
			mark = " alone"
		}
		out = append(out, fmt.Sprintf("%s:%d%s", s.GetService(), s.GetVersion(), mark))
	}
	return or(strings.Join(out, " "), none)
}

func podCount(st *nodeagentv1.StatusResponse) int32 {
	n := int32(0)
	for _, c := range st.GetPods() {
		n += c
	}
	return n
}

// addressText sums the leased blocks up, by family: used (and not usable yet) of all.
func addressText(st *nodeagentv1.StatusResponse) string {
	type sum struct{ used, quarantined, size int32 }
	var sums [2]sum
	for _, b := range st.GetBlocks() {
		i := 0
		if strings.Contains(b.GetCidr(), ":") {
			i = 1
		}
		sums[i] = sum{sums[i].used + b.GetUsed(), sums[i].quarantined + b.GetQuarantined(), sums[i].size + b.GetSize()}
	}
	var out []string
	for i, family := range []string{"v4", "v6"} {
		if s := sums[i]; s.size > 0 {
			text := fmt.Sprintf("%s:%d/%d", family, s.used, s.size)
			if s.quarantined > 0 {
				text += fmt.Sprintf("(+%d)", s.quarantined)
			}
			out = append(out, text)
		}
	}
	return or(strings.Join(out, " "), none)
}

func driftText(st *nodeagentv1.StatusResponse) string {
	if n := len(st.GetDrift()); n > 0 {
		return fmt.Sprintf("%d differences", n)
	}
	return ""
}

// remarks are what a person should read about one node.
func remarks(st *nodeagentv1.StatusResponse) []string {
	var out []string
	for _, s := range st.GetSlices() {
		if s.GetFrozen() {
			out = append(out, fmt.Sprintf("%s is frozen: holds %x/%d, was offered %x/%d; `podwire accept %s` takes what is offered",
				s.GetService(), s.GetClusterId(), s.GetVersion(), s.GetOfferedClusterId(), s.GetOfferedVersion(), st.GetNode()))
		}
		if s.GetRefused() != "" {
			out = append(out, s.GetService()+": "+s.GetRefused())
		}
	}
	for _, d := range st.GetDrift() {
		out = append(out, "drift: "+d)
	}
	for _, s := range st.GetSettings() {
		if s.GetActual() != s.GetWanted() {
			out = append(out, fmt.Sprintf("setting %s is %s, must be %s", s.GetName(), s.GetActual(), s.GetWanted()))
		}
	}
	return append(out, st.GetWarnings()...)
}

// statusJSON prints everything that was answered.
func (a *app) statusJSON(services []serviceState, nodes []nodeState, progress []*clusterv1.ServiceProgress, found findings) error {
	var serviceList, nodeList []any
	memberList, warningList, missingList := []any{}, list(found.warnings), list(found.missing)
	for _, m := range found.members {
		fabric, underlay := memberAddresses(m)
		memberList = append(memberList, map[string]any{
			"name": m.GetMetadata().GetName(), "service": describe.Member(m), "ready": describe.Ready(m), "reason": notReady(m),
			"addresses": list(fabric), "underlay": list(underlay),
		})
	}
	for _, s := range services {
		entry := map[string]any{
			"service": s.process.GetService(), "replica": s.process.GetName(), "target": s.process.GetTarget(), "health": s.health,
		}
		for _, p := range progress {
			if p.GetService() == s.process.GetService() {
				entry["watermark"] = float64(p.GetWatermark())
				entry["behind"] = laggardNames(p)
			}
		}
		serviceList = append(serviceList, entry)
	}
	for _, n := range nodes {
		entry := map[string]any{"node": n.process.GetName(), "ready": n.process.GetReady(), "target": n.process.GetTarget()}
		if n.err != nil {
			entry["error"] = n.err.Error()
		} else {
			status, err := plain(n.status)
			if err != nil {
				return err
			}
			entry["status"] = status
		}
		nodeList = append(nodeList, entry)
	}
	doc, err := structpb.NewStruct(map[string]any{
		"services": serviceList, "nodes": nodeList, "members": memberList, "warnings": warningList, "unread": missingList,
	})
	if err != nil {
		return errs.WrapAs(errs.Internal, err, "status")
	}
	text, err := manifest.EncodeMessage(doc, manifest.JSON)
	if err != nil {
		return err
	}
	_, err = a.out.Write(text)
	return err
}

// list turns texts into what structpb takes.
func list(texts []string) []any {
	out := make([]any, 0, len(texts))
	for _, t := range texts {
		out = append(out, t)
	}
	return out
}

// plain turns a message into what structpb takes.
func plain(m *nodeagentv1.StatusResponse) (map[string]any, error) {
	raw, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "status")
	}
	var s structpb.Struct
	if err := protojson.Unmarshal(raw, &s); err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "status")
	}
	return s.AsMap(), nil
}

func (a *app) acceptCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "accept NODE | --all",
		Short: "let a frozen node take the state that it was offered, although it goes backwards",
		Args:  cobra.MaximumNArgs(1),
	}
	cmd.Flags().BoolVar(&all, "all", false, "every node that is frozen")
	cmd.RunE = a.traced("accept", func(ctx context.Context, args []string) error {
		if all == (len(args) == 1) {
			return session.Usage("either NODE or --all")
		}
		return a.accept(ctx, args, all)
	})
	return cmd
}

func (a *app) accept(ctx context.Context, args []string, all bool) error {
	ctx, cancel := bound(ctx)
	defer cancel()
	processes, err := a.Processes(ctx)
	if err != nil {
		return err
	}
	done := false
	for _, p := range processes {
		if p.GetService() != "nodeagent" || !all && p.GetName() != args[0] {
			continue
		}
		done = true
		conn, err := a.DialProcess(ctx, p)
		if err != nil {
			return err
		}
		resp, err := nodeagentv1.NewAgentServiceClient(conn).Accept(ctx, &nodeagentv1.AcceptRequest{})
		conn.Close()
		if err != nil {
			return errs.Wrap(err, "node %s", p.GetName())
		}
		if len(resp.GetServices()) == 0 {
			fmt.Fprintf(a.out, "%s: nothing was frozen\n", p.GetName())
			continue
		}
		fmt.Fprintf(a.out, "%s: takes the next complete snapshot of %s\n", p.GetName(), strings.Join(resp.GetServices(), ", "))
	}
	if !done && !all {
		return errs.New(errs.NotFound, "node %q: cluster knows no agent of that name (`podwire get nodes` lists them)", args[0])
	}
	return nil
}
