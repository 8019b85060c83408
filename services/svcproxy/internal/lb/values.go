package lb

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// Pool is what a value is taken from, as AddressClaim.spec.pool spells it.
type Pool string

// The pools of ipam.
const (
	PoolService  Pool = "service"
	PoolNodePort Pool = "node-port"
	PoolBalancer Pool = "load-balancer"
)

// Value is one value of one pool.
type Value struct {
	Pool Pool
	// Text is the address or the port in decimal.
	Text string
}

// Values are the values that a Service holds, each once, in no meaningful order.
func Values(o *objectv1.Service) []Value {
	var out []Value
	add := func(p Pool, text string) {
		if v := (Value{p, text}); !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	for _, text := range o.GetSpec().GetClusterIps() {
		if text != headless && text != "" {
			add(PoolService, canonical(text))
		}
	}
	for _, n := range nodePorts(o) {
		add(PoolNodePort, strconv.Itoa(int(n)))
	}
	if n := o.GetSpec().GetHealthCheckNodePort(); n != 0 {
		add(PoolNodePort, strconv.Itoa(int(n)))
	}
	if Balanced(o) {
		for _, in := range o.GetStatus().GetLoadBalancer().GetIngress() {
			if in.GetIp() != "" {
				add(PoolBalancer, canonical(in.GetIp()))
			}
		}
	}
	return out
}

// canonical writes an address in the one way in which ipam does.
func canonical(text string) string {
	if a, err := netip.ParseAddr(text); err == nil {
		return a.String()
	}
	return text
}

// Want is one value that a Service needs of a pool.
type Want struct {
	Pool Pool
	// Family of an address; empty for a node port.
	Family Family
	// Text is the exact value; empty: any.
	Text string
	// Field is the Kubernetes field path that the value goes to.
	Field string
	// Optional values may be lacking: a load balancer without an address stays pending.
	Optional bool

	ports []int // of spec.ports, that share the value
}

// Wants are the values that a completed Service needs and does not hold by old, which is nil on create: exact ones that
// the caller names, and any where it names none.
func Wants(o, old *objectv1.Service) []Want {
	held := Values(old)
	var out []Want
	for _, w := range slices.Concat(clusterWants(o), portWants(o), balancerWants(o)) {
		if w.Text == "" || !slices.Contains(held, Value{w.Pool, canonical(w.Text)}) {
			out = append(out, w)
		}
	}
	return out
}

func clusterWants(o *objectv1.Service) []Want {
	spec := o.GetSpec()
	if !needsClusterIP(o) || isHeadless(o) {
		return nil
	}
	var out []Want
	for i, f := range spec.GetIpFamilies() {
		w := Want{Pool: PoolService, Family: Family(f), Field: fmt.Sprintf("spec.clusterIPs[%d]", i)}
		if i < len(spec.GetClusterIps()) {
			w.Text = spec.GetClusterIps()[i]
		}
		out = append(out, w)
	}
	return out
}

// portWants are the node ports. As in Kubernetes, one number serves several protocols of one port.
func portWants(o *objectv1.Service) []Want {
	spec := o.GetSpec()
	var out []Want
	byPort := map[int32]int{} // port of the Service -> index of a want
	needed := needsNodePorts(o)
	for i, p := range spec.GetPorts() {
		if p.GetNodePort() == 0 {
			continue
		}
		byPort[p.GetPort()] = len(out)
		out = append(out, portWant(i, strconv.Itoa(int(p.GetNodePort()))))
	}
	for i, p := range spec.GetPorts() {
		if p.GetNodePort() != 0 || !needed {
			continue
		}
		if at, ok := byPort[p.GetPort()]; ok {
			out[at].ports = append(out[at].ports, i)
			continue
		}
		byPort[p.GetPort()] = len(out)
		out = append(out, portWant(i, ""))
	}
	if needsHealthCheck(o) {
		w := Want{Pool: PoolNodePort, Field: "spec.healthCheckNodePort"}
		if n := spec.GetHealthCheckNodePort(); n != 0 {
			w.Text = strconv.Itoa(int(n))
		}
		out = append(out, w)
	}
	return out
}

func portWant(index int, text string) Want {
	return Want{Pool: PoolNodePort, Text: text, Field: fmt.Sprintf("spec.ports[%d].nodePort", index), ports: []int{index}}
}

// balancerWants are the load balancer addresses, one of each family: the one that is asked for, the one that is held, or
// any.
func balancerWants(o *objectv1.Service) []Want {
	if !Balanced(o) {
		return nil
	}
	asked, err := netip.ParseAddr(o.GetSpec().GetLoadBalancerIp())
	held := map[Family]string{}
	for _, in := range o.GetStatus().GetLoadBalancer().GetIngress() {
		if a, err := netip.ParseAddr(in.GetIp()); err == nil {
			held[FamilyOf(a)] = a.String()
		}
	}
	var out []Want
	for _, f := range o.GetSpec().GetIpFamilies() {
		w := Want{Pool: PoolBalancer, Family: Family(f), Text: held[Family(f)], Field: "status.loadBalancer.ingress", Optional: true}
		if err == nil && FamilyOf(asked) == w.Family {
			w.Text, w.Field, w.Optional = asked.String(), "spec.loadBalancerIP", false
		}
		out = append(out, w)
	}
	return out
}

// Pending says whether a Service lacks a load balancer address that we are to give it.
func Pending(o *objectv1.Service) bool {
	return slices.ContainsFunc(balancerWants(o), func(w Want) bool { return w.Text == "" })
}

// Grant writes what was allocated into a Service: texts has one value for each want, empty where an optional one was not
// to be had. Load balancer addresses that nothing wants any more leave the status.
func Grant(o *objectv1.Service, wants []Want, texts []string) {
	spec := o.Spec
	ingress := map[Family]string{}
	for _, w := range balancerWants(o) {
		ingress[w.Family] = w.Text
	}
	for i, w := range wants {
		switch {
		case w.Pool == PoolBalancer:
			ingress[w.Family] = texts[i]
		case w.Pool == PoolNodePort && w.ports == nil:
			spec.HealthCheckNodePort = portOf(texts[i])
		case w.Pool == PoolNodePort:
			for _, at := range w.ports {
				spec.Ports[at].NodePort = portOf(texts[i])
			}
		}
	}
	grantClusterIPs(o, wants, texts)
	if !Balanced(o) {
		return
	}
	status := &objectv1.LoadBalancerStatus{}
	for _, f := range spec.GetIpFamilies() {
		if text := ingress[Family(f)]; text != "" {
			status.Ingress = append(status.Ingress, &objectv1.LoadBalancerIngress{Ip: text, IpMode: ptr(ipModeVIP)})
		}
	}
	if o.Status == nil {
		o.Status = &objectv1.ServiceStatus{}
	}
	o.Status.LoadBalancer = status
}

func grantClusterIPs(o *objectv1.Service, wants []Want, texts []string) {
	spec := o.Spec
	for i, f := range spec.GetIpFamilies() {
		for j, w := range wants {
			if w.Pool == PoolService && w.Family == Family(f) && i >= len(spec.ClusterIps) {
				spec.ClusterIps = append(spec.ClusterIps, texts[j])
			}
		}
	}
	if spec.ClusterIp == "" && len(spec.ClusterIps) > 0 {
		spec.ClusterIp = spec.ClusterIps[0]
	}
}

func portOf(text string) int32 {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0
	}
	return int32(n)
}
