package cli

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"podwire.dev/cmd/podwire/internal/cli/describe"
	"podwire.dev/cmd/podwire/internal/cli/explain"
	"podwire.dev/cmd/podwire/internal/cli/objects"
	"podwire.dev/cmd/podwire/internal/session"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/manifest"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	policyv1 "podwire.dev/proto/podwire/policy/v1"
)

func (a *app) explainCommand() *cobra.Command {
	var namespace, output string
	cmd := &cobra.Command{
		Use:   "explain FROM TO[:PORT][/PROTOCOL]",
		Short: "say where a connection would go, and which rule decides",
		Long: "FROM is [NAMESPACE/]POD, node/NODE, an address, or outside. TO is [NAMESPACE/]NAME or NAME.NAMESPACE of a service or a\n" +
			"pod (service/ or pod/ before it says which), node/NODE, or an address; an IPv6 address with a port stands in brackets.\n" +
			"PORT is a number or a port's name; a service with one port needs none. PROTOCOL is TCP (the default), UDP or SCTP.\n\n" +
			"The services say what they want, the agents what the tables in their kernels do; a difference is said in a line that\n" +
			"begins with DIFFERS. Exits 0 where the connection is allowed and 1 where it is denied or refused.",
		Example: "  podwire explain client-1 demo-service\n  podwire explain shop/web 10.96.0.10:53/udp\n  podwire explain outside node/node-1:30007",
		Args:    cobra.ExactArgs(2),
	}
	namespaceFlag(cmd, &namespace)
	cmd.Flags().StringVarP(&output, "output", "o", "", "json, or text")
	cmd.RunE = a.traced("explain", func(ctx context.Context, args []string) error {
		return a.explain(ctx, args[0], args[1], namespace, output)
	})
	return cmd
}

func (a *app) explain(ctx context.Context, from, to, namespace, output string) error {
	if output != "" && output != "json" {
		return session.Usage("-o must be json, not %q", output)
	}
	source, err := explain.ParseFrom(from)
	if err != nil {
		return &session.Exit{Status: session.ExitUsage, Err: err}
	}
	target, err := explain.ParseTarget(to)
	if err != nil {
		return &session.Exit{Status: session.ExitUsage, Err: err}
	}
	c := a.connections()
	defer c.close()
	ctx, cancel := bound(ctx)
	defer cancel()
	x := &explainer{app: a, c: c, namespace: or(namespace, defaultNamespace), protocol: target.Protocol, tunnels: map[string][]netip.Addr{}}
	answer, err := x.answer(ctx, source, target)
	if err != nil {
		return err
	}
	write := answer.WriteText
	if output == "json" {
		write = answer.WriteJSON
	}
	if err := write(a.out); err != nil {
		return err
	}
	const failed = 400 // the first status of HTTP that is an error
	if answer.Verdict == explain.Allowed || answer.Verdict == explain.Answered && answer.Request.Status < failed {
		return nil
	}
	return &session.Exit{Status: session.ExitFailure}
}

// explainer answers one question.
type explainer struct {
	*app
	c         *conns
	namespace string
	protocol  string
	from, to  party
	// port is the destination's before translation; 0 where a Service's only port is meant.
	port uint32
	// entry is the node whose tables see the packet first; empty where none is known.
	entry string
	// ends are where the packet may come to, in the order of the answer's paths.
	ends []end
	// tunnels are the tunnel addresses of nodes that were looked up; nodes and pods all of their kind, where asked for.
	tunnels map[string][]netip.Addr
	nodes   []party
	pods    []party
}

// party is one end of the connection, looked up. At most one of pod, node and service is set.
type party struct {
	text    string
	pod     *objectv1.Pod
	node    *objectv1.Node
	service *objectv1.Service
	addrs   []netip.Addr
	// routed says that the party's routes can be asked for: it is the outside that we know.
	routed bool
}

// outsideName is what the answer calls a client outside that has no other name.
const outsideName = "outside"

// member is the service of the fabric member that a party is; empty where it is none.
func (p party) member() string { return describe.Member(p.pod) }

// host says whether the party sends and receives with a node's own addresses.
func (p party) host() bool { return p.node != nil || p.pod.GetSpec().GetHostNetwork() }

// stranger says whether the party is outside of the cluster.
func (p party) stranger() bool { return p.pod == nil && p.node == nil && p.service == nil }

// source looks up where the connection comes from.
func (x *explainer) source(ctx context.Context, e explain.End) (party, error) {
	switch e.Kind {
	case explain.Outside:
		return party{text: outsideName, routed: true}, nil
	case explain.Address:
		return x.holder(ctx, e.Addr)
	case explain.Node:
		return x.node(ctx, e.Name)
	}
	p, err := x.pod(ctx, or(e.Namespace, x.namespace), e.Name)
	if err == nil && (p.pod.GetSpec().GetNodeName() == "" && p.member() == "" || len(p.addrs) == 0) {
		return p, errs.New(errs.Unavailable, "pod %s has no address yet: %s", p.text, describeState(p.pod))
	}
	return p, err
}

// destination looks up where it goes, and resolves names: of hosts into out, and that of a port.
func (x *explainer) destination(ctx context.Context, t explain.Target, out *explain.Answer) (p party, err error) {
	switch t.Kind {
	case explain.Address:
		p, err = x.holder(ctx, t.Addr)
	case explain.Node:
		p, err = x.node(ctx, t.Name)
	case explain.Pod:
		p, err = x.pod(ctx, or(t.Namespace, x.namespace), t.Name)
	case explain.Service:
		p, err = x.service(ctx, t.End)
	default:
		p, err = x.named(ctx, t, out)
	}
	if err != nil || out.Verdict != "" {
		return p, err
	}
	return p, x.choosePort(p, t)
}

// choosePort takes the port of the question, which may be a name or left out.
func (x *explainer) choosePort(p party, t explain.Target) (err error) {
	x.port = uint32(t.Port)
	if t.PortName != "" {
		x.port, err = p.portNamed(t.PortName, t.Protocol)
	}
	if err == nil && x.port == 0 && p.service == nil {
		return session.Usage("%s: which port? TO:PORT", t.End)
	}
	if err == nil && x.port == 0 {
		x.port = p.onlyPort(t.Protocol)
	}
	return err
}

// portNamed finds a port of a Service or a Pod by its name.
func (p party) portNamed(name, protocol string) (uint32, error) {
	for _, port := range p.service.GetSpec().GetPorts() {
		if port.GetName() == name && or(port.GetProtocol(), "TCP") == protocol {
			return uint32(port.GetPort()), nil
		}
	}
	for _, c := range p.pod.GetSpec().GetContainers() {
		for _, port := range c.GetPorts() {
			if port.GetName() == name && or(port.GetProtocol(), "TCP") == protocol {
				return uint32(port.GetContainerPort()), nil
			}
		}
	}
	return 0, errs.New(errs.NotFound, "%s has no %s port named %q", p.text, protocol, name)
}

// onlyPort is the one port of a Service in a protocol; 0 where there is none or several, which svcproxy complains about.
func (p party) onlyPort(protocol string) uint32 {
	found := uint32(0)
	for _, port := range p.service.GetSpec().GetPorts() {
		switch {
		case or(port.GetProtocol(), "TCP") != protocol:
		case found != 0:
			return 0
		default:
			found = uint32(port.GetPort())
		}
	}
	return found
}

func (x *explainer) get(ctx context.Context, kind, namespace, name string) (manifest.Message, error) {
	k, err := x.kind(kind)
	if err != nil {
		return nil, err
	}
	return x.c.objects().Get(ctx, k, namespace, name)
}

func (x *explainer) list(ctx context.Context, kind string) ([]manifest.Message, error) {
	k, err := x.kind(kind)
	if err != nil {
		return nil, err
	}
	list, _, err := x.c.objects().List(ctx, k, objects.Selection{AllNamespaces: true})
	return list, err
}

func (x *explainer) pod(ctx context.Context, namespace, name string) (party, error) {
	obj, err := x.get(ctx, "pod", namespace, name)
	if err != nil {
		return party{}, err
	}
	return podParty(obj.(*objectv1.Pod)), nil
}

func podParty(pod *objectv1.Pod) party {
	p := party{text: pod.GetMetadata().GetNamespace() + "/" + pod.GetMetadata().GetName(), pod: pod}
	for _, ip := range pod.GetStatus().GetPodIps() {
		p.addrs = appendAddr(p.addrs, ip.GetIp())
	}
	return p
}

func (x *explainer) node(ctx context.Context, name string) (party, error) {
	obj, err := x.get(ctx, "node", "", name)
	if err != nil {
		return party{}, err
	}
	return nodeParty(obj.(*objectv1.Node)), nil
}

func nodeParty(node *objectv1.Node) party {
	p := party{text: node.GetMetadata().GetName(), node: node}
	for _, a := range node.GetStatus().GetAddresses() {
		if a.GetType() == "InternalIP" {
			p.addrs = appendAddr(p.addrs, a.GetAddress())
		}
	}
	return p
}

func (x *explainer) service(ctx context.Context, e explain.End) (party, error) {
	ns, name := or(e.Namespace, x.namespace), e.Name
	if e.Namespace == "" {
		// A Service's name has no dots, so what follows one is a namespace, as in DNS.
		if first, rest, ok := strings.Cut(name, "."); ok {
			name = first
			ns, _, _ = strings.Cut(rest, ".")
		}
	}
	obj, err := x.get(ctx, "service", ns, name)
	if err != nil {
		return party{}, err
	}
	svc := obj.(*objectv1.Service)
	p := party{text: ns + "/" + name, service: svc}
	for _, ip := range svc.GetSpec().GetClusterIps() {
		p.addrs = appendAddr(p.addrs, ip) // "None" is none
	}
	return p, nil
}

// holder is the pod or node that has an address, or the address itself.
func (x *explainer) holder(ctx context.Context, addr netip.Addr) (party, error) {
	if err := x.listAll(ctx); err != nil {
		return party{}, err
	}
	for _, list := range [][]party{x.pods, x.nodes} {
		for _, p := range list {
			if slices.Contains(p.addrs, addr) {
				p.addrs = []netip.Addr{addr}
				return p, nil
			}
		}
	}
	return party{text: addr.String(), addrs: []netip.Addr{addr}}, nil
}

// listAll reads the pods and nodes that hold addresses, once.
func (x *explainer) listAll(ctx context.Context) error {
	if x.pods != nil {
		return nil
	}
	pods, err := x.list(ctx, "pod")
	if err != nil {
		return err
	}
	x.pods = make([]party, 0, len(pods))
	for _, m := range pods {
		if pod := m.(*objectv1.Pod); !pod.GetSpec().GetHostNetwork() && !ended(pod) {
			x.pods = append(x.pods, podParty(pod))
		}
	}
	return x.listNodes(ctx)
}

// listNodes reads the nodes, once.
func (x *explainer) listNodes(ctx context.Context) error {
	if x.nodes != nil {
		return nil
	}
	nodes, err := x.list(ctx, "node")
	if err != nil {
		return err
	}
	x.nodes = make([]party, 0, len(nodes))
	for _, m := range nodes {
		x.nodes = append(x.nodes, nodeParty(m.(*objectv1.Node)))
	}
	return nil
}

// ended says whether a Pod has come to its end, and so holds no address any more.
func ended(pod *objectv1.Pod) bool {
	phase := pod.GetStatus().GetPhase()
	return phase == "Succeeded" || phase == "Failed"
}

func appendAddr(list []netip.Addr, text string) []netip.Addr {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return list
	}
	return append(list, addr.Unmap())
}

// sameFamily is the first address of the family of another one; invalid where there is none.
func sameFamily(list []netip.Addr, as netip.Addr) netip.Addr {
	for _, a := range list {
		if a.BitLen() == as.BitLen() {
			return a
		}
	}
	return netip.Addr{}
}

// common is the first address of to whose family from has, too; invalid where they have none in common.
func common(from, to []netip.Addr) netip.Addr {
	for _, a := range to {
		if sameFamily(from, a).IsValid() {
			return a
		}
	}
	return netip.Addr{}
}

// asked is the party as the policy service takes it, about packets of the family of an address. Of names the service judges
// the first family, so a source that has another one is asked for by its address of that family.
func (p party) asked(as netip.Addr) *policyv1.Party {
	named := podParty(p.pod).addrs
	switch {
	case p.pod != nil && len(named) > 0 && sameFamily(named, as).IsValid() && named[0].BitLen() != as.BitLen():
		return &policyv1.Party{Party: &policyv1.Party_Address{Address: sameFamily(named, as).String()}}
	case p.pod != nil:
		return &policyv1.Party{Party: &policyv1.Party_Pod{Pod: p.text}}
	case p.node != nil:
		return &policyv1.Party{Party: &policyv1.Party_Node{Node: p.text}}
	}
	return &policyv1.Party{Party: &policyv1.Party_Address{Address: p.addrs[0].String()}}
}

// shown is the party as the answer has it.
func (p party) shown() explain.Party {
	out := explain.Party{Kind: "address", Name: p.text, Node: p.pod.GetSpec().GetNodeName()}
	for _, a := range p.addrs {
		out.Addresses = append(out.Addresses, a.String())
	}
	switch {
	case p.member() != "":
		out.Kind = "member"
	case p.pod != nil:
		out.Kind = "pod"
	case p.node != nil:
		out.Kind = "node"
	case p.service != nil:
		out.Kind = "service"
	case p.text == outsideName:
		out.Kind = "host"
	}
	return out
}
