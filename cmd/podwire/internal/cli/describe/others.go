package describe

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"podwire.dev/internal/manifest"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// secret writes keys and sizes, never a value.
func (p *page) secret(ctx context.Context, o *objectv1.Secret) {
	p.head(o)
	p.field(0, "Type", or(o.GetType(), "Opaque"))
	if o.GetImmutable() {
		p.field(0, "Immutable", "True")
	}
	ns, name := o.GetMetadata().GetNamespace(), o.GetMetadata().GetName()
	if ingresses, ok := list[*objectv1.Ingress](ctx, p, "Ingress", ns); ok {
		users := ingressNames(ingresses, func(in *objectv1.Ingress) bool {
			return slices.ContainsFunc(in.GetSpec().GetTls(), func(t *objectv1.IngressTLS) bool { return t.GetSecretName() == name })
		})
		p.field(0, "Used By Ingresses", joined(users))
		if len(users) > 0 && o.GetType() != secretTLS {
			p.warn("the Ingresses that name it need the type %s", secretTLS)
		}
	}
	p.line(0, "Data")
	p.line(0, "====")
	for _, key := range slices.Sorted(maps.Keys(o.GetData())) {
		p.field(0, key, fmt.Sprintf("%d bytes", len(o.GetData()[key])))
	}
	if o.GetType() == secretTLS {
		if problem := pairProblem(o); problem != "" {
			p.warn("%s: no Ingress can serve it", problem)
		}
	}
}

func (p *page) node(ctx context.Context, o *objectv1.Node) {
	p.head(o)
	var taints []string
	for _, t := range o.GetSpec().GetTaints() {
		text := t.GetKey()
		if t.GetValue() != "" {
			text += "=" + t.GetValue()
		}
		taints = append(taints, text+":"+t.GetEffect())
	}
	p.several(0, "Taints", taints)
	p.field(0, "Unschedulable", strconv.FormatBool(o.GetSpec().GetUnschedulable()))
	var conditions []condition
	for _, c := range o.GetStatus().GetConditions() {
		conditions = append(conditions, condition{c.GetType(), c.GetStatus(), c.GetReason(), c.GetMessage()})
	}
	p.conditions(conditions)
	p.line(0, "Addresses:")
	for _, a := range o.GetStatus().GetAddresses() {
		p.field(1, a.GetType(), a.GetAddress())
	}
	if info := o.GetStatus().GetNodeInfo(); info != nil {
		p.line(0, "System Info:")
		p.optional(1, "Kernel Version", info.GetKernelVersion())
		p.optional(1, "OS Image", info.GetOsImage())
		p.optional(1, "Operating System", info.GetOperatingSystem())
		p.optional(1, "Architecture", info.GetArchitecture())
		p.optional(1, "Container Runtime Version", info.GetContainerRuntimeVersion())
	}
	name := o.GetMetadata().GetName()
	if blocks, ok := list[*objectv1.AddressBlock](ctx, p, "AddressBlock", ""); ok {
		var cidrs []string
		for _, b := range blocks {
			if b.GetSpec().GetNode() == name {
				cidrs = append(cidrs, b.GetSpec().GetCidr())
			}
		}
		slices.Sort(cidrs)
		p.field(0, "Address Blocks", joined(cidrs))
		if len(cidrs) == 0 {
			p.warn("the node holds no block of addresses: no pod can start on it")
		}
	}
	if pods, ok := list[*objectv1.Pod](ctx, p, "Pod", ""); ok {
		p.nodePods(slices.DeleteFunc(pods, func(pod *objectv1.Pod) bool { return pod.GetSpec().GetNodeName() != name || !live(pod) }))
	}
	if status := nodeReady(o); status != "True" {
		p.warn("the node is not ready (%s): its pods are in no endpoints, and new ones go elsewhere", map[string]string{
			"False": "its agent was silent for a second", "Unknown": "declared dead", "": "it never was",
		}[status])
	}
	if o.GetSpec().GetUnschedulable() {
		p.warn("the node is cordoned: no new pod goes there")
	}
}

func (p *page) nodePods(pods []*objectv1.Pod) {
	p.line(0, fmt.Sprintf("Non-terminated Pods: (%d in total)", len(pods)))
	if len(pods) == 0 {
		return
	}
	p.line(1, "Namespace\tName\tStatus\tIP")
	p.line(1, "---------\t----\t------\t--")
	for _, pod := range pods {
		var ips []string
		for _, ip := range pod.GetStatus().GetPodIps() {
			ips = append(ips, ip.GetIp())
		}
		p.line(1, pod.GetMetadata().GetNamespace()+"\t"+pod.GetMetadata().GetName()+"\t"+or(pod.GetStatus().GetPhase(), "Pending")+"\t"+joined(ips))
	}
}

// nodeReady is the status of the Ready condition; empty where there is none.
func nodeReady(o *objectv1.Node) string {
	for _, c := range o.GetStatus().GetConditions() {
		if c.GetType() == "Ready" {
			return c.GetStatus()
		}
	}
	return ""
}

// contents are the kinds that a Namespace is made of.
func contents() []string {
	return []string{"Pod", "Service", "EndpointSlice", "NetworkPolicy", "Ingress", "Secret"}
}

func (p *page) namespace(ctx context.Context, o *objectv1.Namespace) {
	p.head(o)
	phase := or(o.GetStatus().GetPhase(), "Active")
	p.field(0, "Status", phase)
	p.line(0, "Contents:")
	var left []string
	for _, kind := range contents() {
		all, ok := list[manifest.Message](ctx, p, kind, o.GetMetadata().GetName())
		if !ok {
			p.field(1, kind, "<unknown>")
			continue
		}
		p.field(1, kind, strconv.Itoa(len(all)))
		if len(all) > 0 {
			left = append(left, fmt.Sprintf("%s (%d)", kind, len(all)))
		}
	}
	if phase != "Terminating" {
		return
	}
	for _, c := range o.GetStatus().GetConditions() {
		if c.GetMessage() != "" {
			p.warn("%s: %s", c.GetType(), oneLine(c.GetMessage()))
		}
	}
	if len(left) > 0 {
		p.warn("it ends when its content is gone; left are %s", joined(left))
	} else {
		p.warn("it is empty, and ends when every service has taken that in")
	}
}

func (p *page) block(ctx context.Context, o *objectv1.AddressBlock) {
	p.head(o)
	p.field(0, "CIDR", o.GetSpec().GetCidr())
	if member := o.GetSpec().GetMember(); member != "" {
		p.field(0, "Member", member)
		return
	}
	node := o.GetSpec().GetNode()
	p.field(0, "Node", or(node, none))
	if _, found, ok := get[*objectv1.Node](ctx, p, "Node", "", node); ok && !found {
		p.warn("node %s does not exist: ipam takes the block back after a while", node)
	}
}

func (p *page) claim(o *objectv1.AddressClaim) {
	p.head(o)
	p.field(0, "Pool", o.GetSpec().GetPool())
	p.field(0, "Value", o.GetSpec().GetValue())
	owner := o.GetSpec().GetOwner()
	p.field(0, "Owner", owner.GetKind()+" "+owner.GetNamespace()+"/"+owner.GetName())
	p.field(0, "Owner UID", owner.GetUid())
}
