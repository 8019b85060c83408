package lb

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/structpb"

	"podwire.dev/internal/nodestate"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// Service is what endpoints and rows need to know of a Service.
type Service struct {
	Ref
	UID    string
	Labels map[string]string
	Type   string
	// Headless Services have endpoints and no rows.
	Headless bool
	// Selector is empty where the slices are written by hand.
	Selector   map[string]string
	Ports      []Port
	ClusterIPs []netip.Addr
	Families   []Family
	// Balancer are the addresses of status.loadBalancer that packets keep as their destination.
	Balancer  []netip.Addr
	Externals []netip.Addr
	// Limited says that only Sources may use Balancer.
	Limited                        bool
	Sources                        []netip.Prefix
	Affinity                       uint32
	InternalPolicy, ExternalPolicy nodestate.Locality
	PublishNotReady                bool
	Distribution                   string
	// Ours says that we announce Balancer; Announcer is the Node that does by what is stored, since Epoch.
	Ours      bool
	Announcer string
	Epoch     int64
}

// Port is one port of a Service.
type Port struct {
	Name     string
	Protocol nodestate.Protocol
	Number   uint16
	NodePort uint16
	// Target is the number of the Pods' port, or 0 where TargetName is its name.
	Target      uint16
	TargetName  string
	AppProtocol string
}

// ParseService reads a stored Service. What does not parse is left out: it serves nobody.
func ParseService(o *objectv1.Service) Service {
	meta, spec := o.GetMetadata(), o.GetSpec()
	s := Service{
		Ref: Ref{meta.GetNamespace(), meta.GetName()}, UID: meta.GetUid(), Labels: maps.Clone(meta.GetLabels()),
		Type: typeOf(o), Headless: isHeadless(o), Selector: maps.Clone(spec.GetSelector()),
		Externals: addrsOf(spec.GetExternalIps()), InternalPolicy: locality(spec.GetInternalTrafficPolicy()),
		ExternalPolicy: locality(spec.GetExternalTrafficPolicy()), PublishNotReady: spec.GetPublishNotReadyAddresses(),
		Distribution: spec.GetTrafficDistribution(), Ours: Balanced(o), Announcer: meta.GetAnnotations()[AnnotationAnnouncer],
	}
	if epoch, err := strconv.ParseInt(meta.GetAnnotations()[AnnotationEpoch], 10, 64); err == nil {
		s.Epoch = epoch
	}
	for _, p := range spec.GetPorts() {
		if port, ok := parsePort(p); ok {
			s.Ports = append(s.Ports, port)
		}
	}
	if s.Type == TypeExternalName {
		return s
	}
	if !s.Headless {
		s.ClusterIPs = addrsOf(spec.GetClusterIps())
	}
	for _, f := range spec.GetIpFamilies() {
		if Family(f).valid() {
			s.Families = append(s.Families, Family(f))
		}
	}
	if spec.GetSessionAffinity() == affinityClientIP {
		s.Affinity = uint32(defaultAffinity)
		if c := spec.GetSessionAffinityConfig().GetClientIp(); c != nil && c.TimeoutSeconds != nil {
			s.Affinity = uint32(c.GetTimeoutSeconds())
		}
	}
	if s.Type == TypeLoadBalancer {
		s.parseBalancer(o)
	}
	return s
}

func (s *Service) parseBalancer(o *objectv1.Service) {
	for _, in := range o.GetStatus().GetLoadBalancer().GetIngress() {
		a, err := netip.ParseAddr(in.GetIp())
		if err == nil && (in.IpMode == nil || in.GetIpMode() == ipModeVIP) {
			s.Balancer = append(s.Balancer, a)
		}
	}
	s.Balancer = sortAddrs(s.Balancer)
	ranges := sourceRanges(o)
	s.Limited = len(ranges) > 0
	for _, text := range ranges {
		if p, err := netip.ParsePrefix(strings.TrimSpace(text)); err == nil {
			s.Sources = append(s.Sources, p.Masked())
		}
	}
	slices.SortFunc(s.Sources, comparePrefix)
	s.Sources = slices.Compact(s.Sources)
}

func comparePrefix(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

func locality(policy string) nodestate.Locality {
	if policy == policyLocal {
		return nodestate.LocalityLocal
	}
	return nodestate.LocalityCluster
}

func parsePort(p *objectv1.ServicePort) (Port, bool) {
	protocol, ok := nodestate.ParseProtocol(p.GetProtocol())
	if !ok || p.GetPort() < 1 || p.GetPort() > 65535 {
		return Port{}, false
	}
	port := Port{
		Name: p.GetName(), Protocol: protocol, Number: uint16(p.GetPort()), NodePort: uint16(p.GetNodePort()),
		AppProtocol: p.GetAppProtocol(),
	}
	switch kind := p.GetTargetPort().GetKind().(type) {
	case *structpb.Value_StringValue:
		port.TargetName = kind.StringValue
	case *structpb.Value_NumberValue:
		port.Target = uint16(kind.NumberValue)
	}
	if port.TargetName == "" && port.Target == 0 {
		port.Target = port.Number
	}
	return port, true
}

// Served says whether nodes serve the Service: it has addresses of its own, and is left to no other proxy.
func (s *Service) Served() bool {
	_, other := s.Labels[LabelProxyName]
	return s.Type != TypeExternalName && !s.Headless && len(s.ClusterIPs) > 0 && !other
}

// selects says whether the Service's endpoints are derived, and a Pod with these labels is one of them.
func (s *Service) selects(labels map[string]string) bool {
	for key, value := range s.Selector {
		if have, ok := labels[key]; !ok || have != value {
			return false
		}
	}
	return s.derives()
}

// derives says whether endpoints are derived from Pods.
func (s *Service) derives() bool { return len(s.Selector) > 0 && s.Type != TypeExternalName }

// Pod is what endpoints need to know of a Pod.
type Pod struct {
	Ref
	UID                 string
	Node                string
	Labels              map[string]string
	Hostname, Subdomain string
	// Addresses are at most one of each family.
	Addresses []netip.Addr
	Ports     []NamedPort
	// Ready is the Pod's Ready condition; Terminating, that its deletion was asked for.
	Ready, Terminating bool
}

// NamedPort is a container port with a name.
type NamedPort struct {
	Name     string
	Protocol nodestate.Protocol
	Number   uint16
}

// ParsePod reads a Pod. ok is false for one that can be nobody's endpoint: it has ended, or has no address yet.
func ParsePod(o *objectv1.Pod) (p Pod, ok bool) {
	meta, spec, status := o.GetMetadata(), o.GetSpec(), o.GetStatus()
	if status.GetPhase() == "Succeeded" || status.GetPhase() == "Failed" {
		return Pod{}, false
	}
	p = Pod{
		Ref: Ref{meta.GetNamespace(), meta.GetName()}, UID: meta.GetUid(), Node: spec.GetNodeName(),
		Labels: meta.GetLabels(), Hostname: spec.GetHostname(), Subdomain: spec.GetSubdomain(),
		Terminating: meta.GetDeletionTimestamp() != nil,
	}
	texts := []string{status.GetPodIp()}
	for _, ip := range status.GetPodIps() {
		texts = append(texts, ip.GetIp())
	}
	for _, text := range texts {
		a, err := netip.ParseAddr(text)
		if err == nil && !slices.ContainsFunc(p.Addresses, func(b netip.Addr) bool { return FamilyOf(a) == FamilyOf(b) }) {
			p.Addresses = append(p.Addresses, a)
		}
	}
	for _, c := range status.GetConditions() {
		if c.GetType() == "Ready" {
			p.Ready = c.GetStatus() == "True"
		}
	}
	for _, c := range spec.GetContainers() {
		p.addPorts(c)
	}
	for _, c := range spec.GetInitContainers() {
		if c.GetRestartPolicy() == "Always" { // a sidecar
			p.addPorts(c)
		}
	}
	return p, len(p.Addresses) > 0
}

func (p *Pod) addPorts(c *objectv1.Container) {
	for _, port := range c.GetPorts() {
		protocol, ok := nodestate.ParseProtocol(port.GetProtocol())
		if ok && port.GetName() != "" && port.GetContainerPort() > 0 && port.GetContainerPort() <= 65535 {
			p.Ports = append(p.Ports, NamedPort{port.GetName(), protocol, uint16(port.GetContainerPort())})
		}
	}
}

func samePod(a, b Pod) bool {
	return a.UID == b.UID && a.Node == b.Node && a.Hostname == b.Hostname && a.Subdomain == b.Subdomain &&
		a.Ready == b.Ready && a.Terminating == b.Terminating && maps.Equal(a.Labels, b.Labels) &&
		slices.Equal(a.Addresses, b.Addresses) && slices.Equal(a.Ports, b.Ports)
}

// resolve is the number of a Service's target port in the Pod.
func (p *Pod) resolve(port Port) (uint16, bool) {
	if port.TargetName == "" {
		return port.Target, true
	}
	for _, have := range p.Ports {
		if have.Name == port.TargetName && have.Protocol == port.Protocol {
			return have.Number, true
		}
	}
	return 0, false
}

// Node is what endpoints and announcements need to know of a Node.
type Node struct {
	Name, Zone string
	// Able says that the Node may announce addresses: it is Ready and not excluded from balancing.
	Able      bool
	Addresses []netip.Addr
}

// ParseNode reads a Node.
func ParseNode(o *objectv1.Node) Node {
	n := Node{Name: o.GetMetadata().GetName(), Zone: o.GetMetadata().GetLabels()[LabelZone]}
	for _, c := range o.GetStatus().GetConditions() {
		if c.GetType() == "Ready" {
			n.Able = c.GetStatus() == "True"
		}
	}
	if _, excluded := o.GetMetadata().GetLabels()[LabelExcludeBalancers]; excluded {
		n.Able = false
	}
	for _, a := range o.GetStatus().GetAddresses() {
		if addr, err := netip.ParseAddr(a.GetAddress()); err == nil && (a.GetType() == "InternalIP" || a.GetType() == "ExternalIP") {
			n.Addresses = append(n.Addresses, addr)
		}
	}
	n.Addresses = sortAddrs(n.Addresses)
	return n
}

func sameNode(a, b Node) bool {
	return a.Zone == b.Zone && a.Able == b.Able && slices.Equal(a.Addresses, b.Addresses)
}
